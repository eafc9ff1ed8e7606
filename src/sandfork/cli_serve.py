"""`sandfork serve`: start the service and say how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sandfork import __version__
from sandfork.cli_terms import ConfigFile, out, settings

if TYPE_CHECKING:
    from sandfork.serve import Service

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def serve(
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 is the dialect's own.")] = None,
    dialect: Annotated[str | None, typer.Option(help="Speak this dialect at the root, and no other.")] = None,
    open_: Annotated[bool | None, typer.Option("--open", help="Serve a network without API keys.")] = None,
    reduced: Annotated[
        bool | None, typer.Option("--reduced", help="Serve without namespaces, where they cannot be had.")
    ] = None,
    tier: Annotated[str, typer.Option(hidden=True)] = "process",
) -> None:
    """Start the service. It runs until SIGTERM or Ctrl-C, which let what runs end."""
    loaded = settings(
        config,
        server__host=host,
        server__port=port,
        server__dialect=dialect,
        access__open=open_,
        process__reduced=reduced,
    )
    from sandfork.serve import serve as run_service  # imports the whole service, which `--help` does not need

    run_service(loaded, tier=tier, announce=announce)


def announce(service: Service) -> None:
    """Tell that the service answers, and how to try it."""
    host, port = service.address
    host = ANY_ADDRESS.get(host, host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if service.unenforced:
        out.print(f"This host cannot enforce: {', '.join(service.unenforced)}.", markup=False)
    out.print(f"sandfork {__version__} answers at {url}, isolation: {service.tier.isolation}. Try:\n", markup=False)
    out.print(f"  {example(url, service.config.server.dialect, with_key=bool(service.keys))}\n", markup=False)


def example(url: str, dialect: str, *, with_key: bool) -> str:
    """Return a command line that shows the service at `url` working."""
    if dialect not in ("all", "zeroboot"):
        return f"curl {url}/health"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if with_key else ""
    body = '{"code": "import numpy; print(numpy.random.rand(3))", "language": "python"}'
    return f"curl {url}/v1/exec -H 'Content-Type: application/json'{key} -d '{body}'"
