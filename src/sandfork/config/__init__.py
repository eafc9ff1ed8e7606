"""Settings: one TOML file, SANDFORK_* variables and options, checked and documented.

`schema` declares them, `values` converts and checks one, `loading` reads them all, `sizing` replaces the automatic
ones, `reference` writes them down.
"""

from sandfork.config.loading import ConfigError, Loaded, client_environment, load
from sandfork.config.reference import document, effective
from sandfork.config.schema import ALL_DIALECTS, Config
from sandfork.config.sizing import Machine, size

__all__ = [
    "ALL_DIALECTS",
    "Config",
    "ConfigError",
    "Loaded",
    "Machine",
    "client_environment",
    "document",
    "effective",
    "load",
    "size",
]
