"""HTTP API flavours. Each dialect is the module of its name, which defines `DIALECT`; none imports another.

`base` says what a dialect is, `fields` holds the conversions they share. A dialect too long for one module keeps its
wire types in a second, named after it.
"""

from __future__ import annotations

import importlib
import pkgutil

from sandfork.dialects.base import Dialect


def load_dialects() -> tuple[Dialect, ...]:
    """Return every dialect of this package, ordered by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = (getattr(importlib.import_module(f"{__name__}.{name}"), "DIALECT", None) for name in names)
    return tuple(dialect for dialect in found if isinstance(dialect, Dialect))
