"""One kernel facility a module; synchronous, no policy of its own."""
