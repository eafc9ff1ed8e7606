"""The catalogue of languages: `data/*.toml` read into frozen records, or refused.

A file's schema, every key but `imports`, `preload`, `interpreter`, `session` and `aliases` required:

    name = "python"                        what requests and replies call it
    aliases = ["python3"]                  other names accepted in requests
    extension = ".py"
    file_name = "main.py"                  what the program's text is written to, in the work directory
    argv = ["/usr/bin/python3", "{file}"]  a plain run; {file} becomes the path of that file
    session = ["/bin/bash", "-i"]          for a default of kind none: the interpreter that keeps a session's state
    [[template]]                           at least one; the first is the default and names no `imports`
    key = "python"                         what the tier, the pool and health call it
    kind = "fork"                          fork: a zygote; park: a booted process waits; none: a ready cell execs argv
    interpreter = "/usr/bin/python3"       for fork and park
    preload = ["numpy"]                    modules a zygote imports before it serves
    imports = ["numpy"]                    the template is chosen when the program imports one of these
    pool_weight = 1.0                      parked sandboxes, as a multiple of the configured pool size

An unknown key, a missing one or a wrong type is refused with the file and the key. Two files may share a template key
when they say the same about it. Commands (an argv instead of a program text) belong to no language; they run in the
template `COMMAND`, which is always there.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from sandfork.languages.imports import compile_scan

BUILT_IN = Path(__file__).parent / "data"
FILE_MARK = "{file}"

_NAME = re.compile(r"[a-z][a-z0-9+#.-]{0,31}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class CatalogueError(ValueError):
    """A language file is wrong; the message names the file and the key."""


class TemplateKind(StrEnum):
    """How sandboxes come out of a template."""

    FORK = "fork"
    PARK = "park"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    """One template of the catalogue; see the module's docstring for the fields."""

    key: str
    kind: TemplateKind
    interpreter: str = ""
    preload: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    pool_weight: float = 1.0

    def pool_target(self, pool_size: int) -> int:
        """Return how many sandboxes to keep parked when the configured pool size is `pool_size`."""
        if pool_size <= 0 or self.pool_weight == 0:
            return 0
        return max(1, round(pool_size * self.pool_weight))


COMMAND = TemplateSpec(key="command", kind=TemplateKind.NONE, pool_weight=0.25)


@dataclass(frozen=True, slots=True)
class Language:
    """One language of the catalogue; `templates[0]` is the default."""

    name: str
    aliases: tuple[str, ...]
    extension: str
    file_name: str
    argv: tuple[str, ...]
    templates: tuple[TemplateSpec, ...]
    session_argv: tuple[str, ...] = ()
    _scans: tuple[tuple[TemplateSpec, Callable[[str], bool]], ...] = field(compare=False, repr=False, default=())

    def installed(self, exists: Callable[[str], bool]) -> bool:
        """Tell whether what a plain run needs is there; `exists` says whether a path of the sandbox's root is."""
        return exists(self.argv[0]) and all(exists(t.interpreter) for t in self.templates if t.interpreter)

    def choose_template(self, code: str, unavailable: Mapping[str, str] = MappingProxyType({})) -> TemplateSpec:
        """Return the template to run `code` in: the first whose `imports` it names, else the default.

        One whose key is in `unavailable` is passed over; the default is returned whatever that says.
        """
        for spec, names in self._scans:
            if names(code) and spec.key not in unavailable:
                return spec
        return self.templates[0]

    def template_named(self, key: str) -> TemplateSpec | None:
        """Return this language's template of that key, or None."""
        return next((t for t in self.templates if t.key == key), None)


class Catalogue:
    """The languages this server knows, by name and alias, and their templates by key."""

    def __init__(self, languages: Iterable[Language]) -> None:
        """Index `languages`. *Raises* CatalogueError when a name, an alias or a template key is taken twice."""
        self._languages = tuple(sorted(languages, key=lambda language: language.name))
        self._by_name: dict[str, Language] = {}
        self._templates: dict[str, TemplateSpec] = {COMMAND.key: COMMAND}
        for language in self._languages:
            for name in (language.name, *language.aliases):
                if name in self._by_name:
                    raise CatalogueError(f"{language.name}: the name {name!r} already means {self._by_name[name].name}")
                self._by_name[name] = language
            for spec in language.templates:
                if self._templates.setdefault(spec.key, spec) != spec:
                    raise CatalogueError(f"{language.name}: template {spec.key!r} is described differently elsewhere")

    @classmethod
    def load(cls, directory: Path = BUILT_IN) -> Catalogue:
        """Read every `*.toml` of `directory`. *Raises* CatalogueError, OSError."""
        return cls(_parse_file(path) for path in sorted(directory.glob("*.toml")))

    def find(self, name: str) -> Language | None:
        """Return the language of that name or alias, spelt exactly, or None."""
        return self._by_name.get(name)

    def names(self) -> tuple[str, ...]:
        """Return the names of all languages, sorted, without aliases."""
        return tuple(language.name for language in self._languages)

    def languages(self) -> tuple[Language, ...]:
        """Return all languages, sorted by name."""
        return self._languages

    def templates(self) -> tuple[TemplateSpec, ...]:
        """Return every template once, the command template first."""
        return tuple(self._templates.values())

    def only(self, keep: Callable[[Language], bool]) -> Catalogue:
        """Return the catalogue of those languages for which `keep` is true."""
        return Catalogue(language for language in self._languages if keep(language))


def _parse_file(path: Path) -> Language:
    with path.open("rb") as file:
        try:
            table = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CatalogueError(f"{path.name}: {error}") from None
    return parse_language(path.name, table)


def parse_language(where: str, table: Mapping[str, object]) -> Language:
    """Return the language a TOML table describes. *Raises* CatalogueError naming `where` and the key."""
    reader = _Reader(where, table, ("name", "aliases", "extension", "file_name", "argv", "session", "template"))
    name = reader.text("name", _NAME)
    argv = reader.texts("argv")
    if not argv or not argv[0].startswith("/") or argv.count(FILE_MARK) != 1:
        reader.refuse("argv", f"must start with an absolute path and name {FILE_MARK!r} once")
    templates = tuple(
        _parse_template(f"{where}, template {number}", item)
        for number, item in enumerate(reader.tables("template"), start=1)
    )
    if not templates or templates[0].imports:
        reader.refuse("template", "needs a default first: one without `imports`")
    if len({spec.key for spec in templates}) != len(templates):
        reader.refuse("template", "a key is there twice")
    return Language(
        name=name,
        aliases=tuple(reader.match("aliases", alias, _NAME) for alias in reader.texts("aliases", ())),
        extension=reader.text("extension", re.compile(r"\.[a-z0-9]{1,8}")),
        file_name=reader.text("file_name", _FILE_NAME),
        argv=argv,
        templates=templates,
        session_argv=_session_argv(reader, templates[0]),
        _scans=tuple((spec, compile_scan(spec.imports)) for spec in templates if spec.imports),
    )


def _session_argv(reader: _Reader, default: TemplateSpec) -> tuple[str, ...]:
    argv = reader.texts("session", ())
    if argv and default.kind is not TemplateKind.NONE:
        reader.refuse("session", f"the interpreter of a template of kind {default.kind} is running already")
    if argv and not argv[0].startswith("/"):
        reader.refuse("session", "must start with an absolute path")
    return argv


def _parse_template(where: str, table: Mapping[str, object]) -> TemplateSpec:
    reader = _Reader(where, table, ("key", "kind", "interpreter", "preload", "imports", "pool_weight"))
    kind = reader.text("kind")
    if kind not in {known.value for known in TemplateKind}:
        reader.refuse("kind", f"must be one of {', '.join(TemplateKind)}")
    spec = TemplateSpec(
        key=reader.text("key", _NAME),
        kind=TemplateKind(kind),
        interpreter=reader.text("interpreter", None, ""),
        preload=tuple(reader.match("preload", module, _MODULE) for module in reader.texts("preload", ())),
        imports=tuple(reader.match("imports", module, _MODULE) for module in reader.texts("imports", ())),
        pool_weight=reader.number("pool_weight"),
    )
    if spec.kind is TemplateKind.NONE and (spec.interpreter or spec.preload):
        reader.refuse("interpreter", "a template of kind none has neither interpreter nor preload")
    if spec.kind is not TemplateKind.NONE and not spec.interpreter.startswith("/"):
        reader.refuse("interpreter", "must be an absolute path")
    if spec.kind is not TemplateKind.FORK and spec.preload:
        reader.refuse("preload", "only a template of kind fork imports modules")
    return spec


class _Reader:
    """Reads typed values out of one TOML table and refuses everything else, naming file and key."""

    def __init__(self, where: str, table: Mapping[str, object], known: tuple[str, ...]) -> None:
        self._where = where
        self._table = table
        for key in table:
            if key not in known:
                self.refuse(key, f"unknown key; known are {', '.join(known)}")

    def refuse(self, key: str, reason: str) -> None:
        raise CatalogueError(f"{self._where}: {key}: {reason}")

    def _value(self, key: str, default: object) -> object:
        value = self._table.get(key, default)
        if value is None:
            self.refuse(key, "is missing")
        return value

    def match(self, key: str, text: str, pattern: re.Pattern[str] | None) -> str:
        if pattern is not None and pattern.fullmatch(text) is None:
            self.refuse(key, f"{text!r} does not match {pattern.pattern}")
        return text

    def text(self, key: str, pattern: re.Pattern[str] | None = None, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise CatalogueError(f"{self._where}: {key}: must be a string")
        return self.match(key, value, pattern)

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self._value(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise CatalogueError(f"{self._where}: {key}: must be a list of strings, none empty")
        return tuple(value)

    def number(self, key: str) -> float:
        value = self._value(key, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1000:
            raise CatalogueError(f"{self._where}: {key}: must be a number from 0 to 1000")
        return float(value)

    def tables(self, key: str) -> list[Mapping[str, object]]:
        value = self._value(key, None)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise CatalogueError(f"{self._where}: {key}: must be a list of tables, [[{key}]]")
        return value
