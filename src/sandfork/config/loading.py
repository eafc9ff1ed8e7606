"""Read the settings: built-in defaults, then one TOML file, then the environment, then options of the command.

The only reader of `os.environ`. A later source replaces single keys of an earlier one; where each value came from
is kept, so that `sandfork config` can say it. Everything unknown or unfit is refused with the file and the key.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from sandfork.config.schema import Config
from sandfork.config.values import Unfit, fit, show

FILE_NAME = "sandfork.toml"
ENV_PREFIX = "SANDFORK_"
ENV_FILE = "SANDFORK_CONFIG"
#: Variables with our prefix that are no settings: where `./dev` installs, and what the client reads.
ENV_OTHERS = frozenset({ENV_FILE, "SANDFORK_HOME", "SANDFORK_URL", "SANDFORK_API_KEY"})
#: Names that programs written for another system set already.
ENV_ALIASES = {"ZEROBOOT_API_KEYS_FILE": "access.keys_file"}
DEFAULT_SOURCE = "default"


class ConfigError(Exception):
    """A setting cannot be used; the message names the source, the key and what would do."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for each key ("server.port") where its value came from."""

    config: Config
    sources: Mapping[str, str]

    def is_explicit(self, key: str) -> bool:
        """Say whether somebody set `key`, rather than leaving its default."""
        return self.sources[key] != DEFAULT_SOURCE


def entries(section: object, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield (key, field, value) of every setting below `section`, in the order of the schema."""
    for entry in fields(section):  # type: ignore[arg-type]
        value = getattr(section, entry.name)
        if is_dataclass(value):
            yield from entries(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", entry, value


def env_name(key: str) -> str:
    """Return the environment variable of a key: "server.port" is SANDFORK_SERVER_PORT."""
    return ENV_PREFIX + key.upper().replace(".", "_")


def client_environment() -> tuple[str | None, str | None]:
    """Return the URL and the API key that commands talking to a running service take from the environment."""
    return os.environ.get("SANDFORK_URL"), os.environ.get("SANDFORK_API_KEY")


def load(
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
) -> Loaded:
    """Return the settings in force.

    `file` is the one named on the command line; without it SANDFORK_CONFIG, or sandfork.toml in the current
    directory when there is one. `options` maps keys to values given on the command line, None for not given.
    *Raises* ConfigError.
    """
    environ = os.environ if environ is None else environ
    schema = {key: entry for key, entry, _ in entries(Config())}
    values: dict[str, Any] = {}
    sources = dict.fromkeys(schema, DEFAULT_SOURCE)

    def put(key: str, value: object, source: str, *, from_text: bool) -> None:
        try:
            values[key] = fit(schema[key], value, from_text=from_text)
        except Unfit as error:
            raise ConfigError(f"{source}: {key}: {error}") from None
        sources[key] = source

    path = _choose_file(file, environ)
    if path is not None:
        for key, value in _flatten(_read_toml(path), schema, str(path)):
            put(key, value, str(path), from_text=False)
    for name, key in _environment_keys(environ, schema):
        put(key, environ[name], name, from_text=True)
    for key, value in (options or {}).items():
        if value is not None:
            put(key, value, "command line", from_text=True)
    config = _assemble(Config(), values)
    _check_together(config, sources)
    return Loaded(config, sources)


def _choose_file(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    if named is not None:
        return named
    if ENV_FILE in environ:
        return Path(environ[ENV_FILE])
    here = Path(FILE_NAME)
    return here if here.exists() else None


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _flatten(
    table: Mapping[str, Any], schema: Mapping[str, Field[Any]], source: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of a TOML document; tables that are no section and no setting are refused."""
    sections = {key.rpartition(".")[0] for key in schema} | {"limits"}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if key in schema:
            yield key, value
        elif key not in sections:
            raise ConfigError(f"{source}: unknown key {key}{_near_miss(key, [*schema, *sections])}")
        elif isinstance(value, Mapping):
            yield from _flatten(value, schema, source, f"{key}.")
        else:
            raise ConfigError(f"{source}: {key}: expected a section [{key}], got {show(value)}")


def _environment_keys(environ: Mapping[str, str], schema: Mapping[str, Field[Any]]) -> Iterator[tuple[str, str]]:
    """Yield (variable, key) of the environment; our own name for a key comes after its alias, and so wins."""
    for name, key in ENV_ALIASES.items():
        if name in environ:
            yield name, key
    known = {env_name(key): key for key in schema}
    for name in sorted(environ):
        if name in known:
            yield name, known[name]
        elif name.startswith(ENV_PREFIX) and name not in ENV_OTHERS:
            raise ConfigError(f"environment: unknown setting {name}{_near_miss(name, [*known, *ENV_OTHERS])}")


def _near_miss(name: str, known: list[str]) -> str:
    # The right key in the wrong section is as common a slip as a misspelt one.
    close = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean {close[0]}?" if close else ""


def _assemble(section: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return `section` with every value whose key is below `prefix` put in."""
    changes: dict[str, Any] = {}
    for entry in fields(section):
        key, value = f"{prefix}{entry.name}", getattr(section, entry.name)
        if is_dataclass(value):
            changes[entry.name] = _assemble(value, values, f"{key}.")
        elif key in values:
            changes[entry.name] = values[key]
    return replace(section, **changes)


def _check_together(config: Config, sources: Mapping[str, str]) -> None:
    """Refuse values that fit each by itself but not one another."""
    for entry in fields(config.limits.default):
        default = getattr(config.limits.default, entry.name)
        maximum = getattr(config.limits.maximum, entry.name)
        if default > maximum and not (maximum == 0 and entry.metadata["zero"]):
            keys = f"limits.default.{entry.name}", f"limits.maximum.{entry.name}"
            where = next((sources[key] for key in keys if sources[key] != DEFAULT_SOURCE), DEFAULT_SOURCE)
            raise ConfigError(f"{where}: {keys[0]} ({show(default)}) is above {keys[1]} ({show(maximum)})")
