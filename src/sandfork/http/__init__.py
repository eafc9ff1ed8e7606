"""What faces HTTP: an ASGI application over the engine, in as many dialects as there are."""
