"""The nouns of the catalogue: a language, its templates, its compiler, its packages, and the programs that prove it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from sandfork.model import LimitsOverride

FILE_MARK, OUT_MARK, BUILD_MARK = "{file}", "{out}", "{build}"
"""Words of a command line: the path of the program's text, of what is made of it, and of the directory that is in."""
NAME_MARK, MEMORY_MARK = "{name}", "{memory_bytes}"
"""The same within words: the name of the program's file, and the memory that the step may use, in bytes."""
FORK_MARK, DRIVER_MARK = "{fork}", "{driver}"
"""Within words that start a template: the paths of what it opens to have it fork, and of its driver."""
WARM_MARK = "{warm}"
"""Within words and variables: the directory of the language's warm cache; where there is none, they are left out."""
BUILD_DIR, OUT_NAME = ".build", "main"
"""Where compilers write, below the work directory, and what `{out}` is called there."""

NO_LIMITS = LimitsOverride()


class TemplateKind(StrEnum):
    """How sandboxes come out of a template."""

    FORK = "fork"
    PARK = "park"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    """One template of the catalogue; see `parsing` for the fields. `image` is NAME@DIGEST, "" for the host's files."""

    key: str
    kind: TemplateKind
    interpreter: str = ""
    preload: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    pool_weight: float = 1.0
    fork_at: str = ""
    start: tuple[str, ...] = ()
    driver: str = ""
    park_at: str = ""
    rehearsal: str = ""
    boot_env: tuple[str, ...] = ()
    memory_bytes: int = 0
    file_name: str = ""
    env: tuple[tuple[str, str], ...] = ()
    image: str = ""

    @property
    def driven(self) -> bool:
        """Whether code of ours in the interpreter takes the steps; else it goes on by itself, or argv is executed."""
        return self.kind is not TemplateKind.NONE and not self.replaceable

    @property
    def replaceable(self) -> bool:
        """Whether its programs can be executed just as well: it only saves them the start of their interpreter."""
        return bool(self.fork_at or self.park_at)

    @property
    def displaced(self) -> bool:
        """Whether it is of languages that are elsewhere than the one that it is called after."""
        return "@" in self.key and self.kind is not TemplateKind.NONE

    @property
    def resident(self) -> bool:
        """Whether what runs steps is the interpreter itself: a step's argv is only what follows it."""
        return self.kind is TemplateKind.FORK and self.driven

    def takes(self, memory_bytes: int, env: Collection[str]) -> bool:
        """Tell whether a process that was started before its program runs it as one started for it would.

        It was told its memory when it started; `env` names variables, of which some count only then.
        """
        told = any(MEMORY_MARK in word for word in self.start) if self.park_at else False
        if told and memory_bytes != self.memory_bytes:
            return False
        return not any(_names(pattern, name) for pattern in self.boot_env for name in env)

    def pool_target(self, pool_size: int) -> int:
        """Return how many sandboxes to keep parked when the configured pool size is `pool_size`."""
        if pool_size <= 0 or self.pool_weight == 0:
            return 0
        return max(1, round(pool_size * self.pool_weight))


def _names(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


COMMAND = TemplateSpec(key="command", kind=TemplateKind.NONE, pool_weight=0.25)


#: Cells parked for the commands of one image, as a multiple of the configured pool size.
_ON_IMAGE_WEIGHT = 0.0625


def on_image(key: str, image: str) -> str:
    """Return the key of a template on an image, "" for the host: it stays the same when the image is replaced."""
    return f"{key}@{image.partition('@')[0] or '/'}"


def command_on(image: str) -> TemplateSpec:
    """Return the template of commands on an image."""
    return replace(COMMAND, key=on_image(COMMAND.key, image), pool_weight=_ON_IMAGE_WEIGHT, image=image)


@dataclass(frozen=True, slots=True)
class CompileSpec:
    """How a language is compiled: the command, the least it may use, and which files it makes are wanted."""

    argv: tuple[str, ...]
    artefacts: tuple[str, ...]
    limits: LimitsOverride = NO_LIMITS
    imports: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """The artefact that an interpreter which is up already takes for its program; none is what is a pattern."""
        first = self.artefacts[0]
        return "" if set(first) & set("*?[") else first


@dataclass(frozen=True, slots=True)
class WarmSpec:
    """What fills a warm cache, beside the program `code`, and what the language's file says with {warm} still in it."""

    argv: tuple[str, ...]
    code: str
    run: tuple[str, ...]
    compile: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


def warm_words(words: tuple[str, ...], path: str) -> tuple[str, ...]:
    """Return a command line with the warm cache at `path`, or without the words that need one."""
    return tuple(word.replace(WARM_MARK, path) for word in words if path or WARM_MARK not in word)


def warm_env(env: tuple[tuple[str, str], ...], path: str) -> tuple[tuple[str, str], ...]:
    """Return variables with the warm cache at `path`, or without those that need one."""
    return tuple((name, value.replace(WARM_MARK, path)) for name, value in env if path or WARM_MARK not in value)


@dataclass(frozen=True, slots=True)
class Packages:
    """What to install, by registry; a name may carry a version as that registry's client takes it.

    `pypi_files` are single files of PyPI, each NAME==VERSION sha256:HASH.
    """

    debian: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    pypi: tuple[str, ...] = ()
    pypi_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """A small program that shows that the language works; see `checks` for what is expected of each."""

    name: str
    code: str
    stdin: str | None = None
    args: tuple[str, ...] = ()
    stdout: str | None = None


@dataclass(frozen=True, slots=True)
class Language:
    """One language of the catalogue; `templates[0]` is the default. See `parsing` for the fields.

    `warm_path` is where its sandboxes see its warm cache; empty is none, and then nothing here names one.
    """

    name: str
    aliases: tuple[str, ...]
    extension: str
    file_name: str
    argv: tuple[str, ...]
    templates: tuple[TemplateSpec, ...] = (COMMAND,)
    session_argv: tuple[str, ...] = ()
    compile: CompileSpec | None = None
    env: tuple[tuple[str, str], ...] = ()
    warm: WarmSpec | None = None
    warm_path: str = ""
    limits: LimitsOverride = NO_LIMITS
    version_argv: tuple[str, ...] = ()
    bare_argv: tuple[str, ...] = ()
    packages: Packages = field(default_factory=Packages)
    needs: tuple[str, ...] = ()
    takes_extension: bool = False
    checks: tuple[Check, ...] = ()
    without: tuple[tuple[str, str], ...] = ()
    scans: tuple[tuple[TemplateSpec, Callable[[str], bool]], ...] = field(compare=False, repr=False, default=())

    @property
    def image(self) -> str:
        """The image that its programs run on, NAME@DIGEST; empty for the host's own files."""
        return self.templates[0].image

    @property
    def commands(self) -> TemplateSpec:
        """The template for its compiler, and for its programs where a template of its own does not do."""
        return command_on(self.image) if self.image else COMMAND

    @property
    def session_template(self) -> TemplateSpec:
        """The template of the first process of a session: one parked for another memory cannot have its limits."""
        default = self.templates[0]
        return self.commands if default.park_at else default

    @property
    def lasts(self) -> bool:
        """Whether there is an interpreter that keeps its state in a session; in others every run is a plain one."""
        return not self.compile and (bool(self.session_argv) or self.templates[0].driven)

    @property
    def programs(self) -> tuple[str, ...]:
        """What must be there for a program to run, the compiler first: paths, and patterns among those of `needs`."""
        firsts = [self.compile.argv[0]] if self.compile else []
        firsts += [self.argv[0], *(t.interpreter for t in self.templates), *self.needs]
        return tuple(dict.fromkeys(path for path in firsts if path.startswith("/")))

    def missing(self, exists: Callable[[str], bool]) -> tuple[str, ...]:
        """Return those of `programs` that are not there; `exists` says whether a path or pattern of its root is."""
        return tuple(path for path in self.programs if not exists(path))

    def installed(self, exists: Callable[[str], bool]) -> bool:
        """Tell whether everything is there that a program needs to run."""
        return not self.missing(exists)

    def warmed(self, path: str) -> Language:
        """Return the language with its warm cache at `path`, or without one."""
        warm = self.warm
        if warm is None:
            return self
        compiled = self.compile and replace(self.compile, argv=warm_words(warm.compile, path))
        argv, env = warm_words(warm.run, path), warm_env(warm.env, path)
        templates = tuple(replace(each, start=argv) if each.park_at else each for each in self.templates)
        return replace(self, argv=argv, templates=templates, compile=compiled, env=env, warm_path=path)

    def sized(self, memory_bytes: int) -> Language:
        """Return the language whose parked processes are started with that much memory."""
        templates = tuple(replace(each, memory_bytes=memory_bytes) if each.park_at else each for each in self.templates)
        return replace(self, templates=templates)

    def choose_template(self, code: str, unavailable: Mapping[str, str] = MappingProxyType({})) -> TemplateSpec:
        """Return the template to run `code` in: the first whose `imports` it, or its compiler, names, else the default.

        One whose key is in `unavailable` is passed over; the default is returned whatever that says, unless its
        programs can be executed just as well.
        """
        compiled_in = self.compile.imports if self.compile else ()
        for spec, names in self.scans:
            if spec.key not in unavailable and (not set(compiled_in).isdisjoint(spec.imports) or names(code)):
                return spec
        default = self.templates[0]
        return self.commands if default.replaceable and default.key in unavailable else default

    def template_named(self, key: str) -> TemplateSpec | None:
        """Return this language's template of that key, or None."""
        return next((t for t in self.templates if t.key == key), None)
