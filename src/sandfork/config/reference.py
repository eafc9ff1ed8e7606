"""Write the settings down: the documented reference, and the values in force with their sources."""

from __future__ import annotations

from dataclasses import Field, fields, is_dataclass
from typing import Any

from sandfork.config.loading import ENV_FILE, FILE_NAME, Loaded, entries, env_name
from sandfork.config.schema import GIB, KIB, MIB, Config
from sandfork.config.values import show

_KINDS = {"int": "integer", "float": "number", "bool": "true or false", "str": "text"}
_INTRODUCTION = f"""\
# Configuration

One TOML file, named by `--config` or `{ENV_FILE}`, else `{FILE_NAME}` in the directory the service is started in.
An environment variable replaces a key of the file, an option of the command replaces both. An unknown key or
variable is refused. `sandfork config` shows the values in force and where each came from; this page is what
`sandfork config --docs` prints.

Sizes are integers or texts such as `"512m"` (k, m, g, t: powers of 1024). In an environment variable a list is
written with commas and a table as JSON.
"""


def document() -> str:
    """Return the reference of all settings as Markdown."""
    return "\n".join([_INTRODUCTION, *_sections(Config(), "")])


def effective(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Return (key, value as TOML writes it, source) of every setting."""
    return [(key, show_setting(entry, value), loaded.sources[key]) for key, entry, value in entries(loaded.config)]


def show_setting(entry: Field[Any], value: object) -> str:
    """Return a value as TOML writes it; whole sizes in their largest unit; no secrets."""
    if entry.metadata["secret"] and value:
        return '"***"'
    if not entry.name.endswith("_bytes") or not isinstance(value, int):
        return show(value)
    for unit, letter in ((GIB, "g"), (MIB, "m"), (KIB, "k")):
        if value and value % unit == 0:
            return f'"{value // unit}{letter}"'
    return show(value)


def _sections(section: object, name: str) -> list[str]:
    text: list[str] = []
    keys = [entry for entry in fields(section) if not is_dataclass(getattr(section, entry.name))]  # type: ignore[arg-type]
    if keys:
        text.append(f"## [{name}]\n\n{type(section).__doc__}\n")
        text += [_paragraph(name, entry, getattr(section, entry.name)) for entry in keys]
    for entry in fields(section):  # type: ignore[arg-type]
        inner = getattr(section, entry.name)
        if is_dataclass(inner):
            text += _sections(inner, f"{name}.{entry.name}" if name else entry.name)
    return text


def _paragraph(section: str, entry: Field[Any], default: object) -> str:
    return (
        f"### {entry.name}\n\n{entry.metadata['text']}\n\n"
        f"{_takes(entry)}, default `{show_setting(entry, default)}` · `{env_name(f'{section}.{entry.name}')}`\n"
    )


def _takes(entry: Field[Any]) -> str:
    if entry.metadata["choices"]:
        return "One of " + ", ".join(f"`{choice}`" for choice in entry.metadata["choices"])
    kind = "size" if entry.name.endswith("_bytes") else _KINDS.get(str(entry.type), "")
    kind = kind or ("list of texts" if "tuple" in str(entry.type) else "table of integers")
    low, high = entry.metadata["low"], entry.metadata["high"]
    bounds = ""
    if low is not None and high is not None:
        bounds = f" from {_bound(entry, low)} to {_bound(entry, high)}"
    elif low is not None:
        bounds = f" of at least {_bound(entry, low)}"
    return kind.capitalize() + bounds + (", or 0" if entry.metadata["zero"] else "")


def _bound(entry: Field[Any], number: float) -> str:
    return show_setting(entry, number).strip('"')
