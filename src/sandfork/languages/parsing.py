"""A language's file: what may be in it, read into a `Language` or refused with the file and the key.

    name = "c"                             what requests and replies call it
    aliases = ["gcc"]                      other names accepted in requests
    extension = ".c"
    takes_extension = true                 a file of it is this language, where others have that extension, too
    file_name = "main.c"                   what the program's text is written to, in the work directory
    argv = ["{out}"]                       the program's command line; its arguments follow
    version = ["/usr/bin/gcc", "--version"]    a command that tells the version somewhere in its output
    needs = ["/usr/include/stdio.h"]       what must be there beside the programs that the command lines begin with; a
                                           pattern, /usr/lib*/gcc/*/*/cc1obj, where a path has a version or machine
    bare = ["/usr/bin/unshare", "--user"]  what runs its command lines where they are measured without a sandbox, where
                                           they need what only a sandbox has
    packages = { debian = ["gcc"], npm = [], pypi = [], pypi_files = [] }
    session = ["/bin/bash", "-i"]          for a default of kind none: the interpreter that keeps a session's state
    [compile]                              run first, in a sandbox of its own; the program runs if it ends with 0
    argv = ["/usr/bin/gcc", "-o", "{out}", "{name}"]
    artefacts = [".build/main"]            paths and globs of what the program is given; that of {out} if left out. An
                                           interpreter that is forked takes the first for its program's text
    imports = ["numpy"]                    what every program imports once it is compiled, whatever its text says
    limits = { wall_s = 30, memory_bytes = "1g" }    what the compiler may use at least; else the server's defaults
    [limits]                               the same for the program, where the request names none
    [env]                                  variables for both steps; a request's own win
    [warm]                                 run once a toolchain, by its owner, to fill the directory {warm}: programs
                                           and compilers see that read-only from then on
    argv = ["/usr/bin/go", "build", "std"]
    code = '''...'''                       what the program's file holds meanwhile; else the check `hello`
    [[template]]                           the first is the default and names no `imports`; none is the command template
    key = "python"                         what the tier, the pool and health call it
    kind = "fork"                          fork: a zygote; park: a booted process waits; none: a ready cell execs argv
    interpreter = "/usr/bin/python3"       for fork and park
    preload = ["numpy"]                    modules a zygote imports before it serves
    fork_at = "open"                       fork, without a driver of ours: when it does; see native/preload.c. What
                                           {file} and {name} are, or the first artefact, is the program that it opens
    start = ["/usr/bin/lua", "-e", "...", "{file}"]    then: how it is started, where not as argv says; {fork} is what
                                           it opens to fork, {driver} the path of `driver`
    driver = "fork.rb"                     then: a file of guest/ that it runs before the program
    park_at = "Main"                       park, of a JVM: the class in argv; words before it start one that waits, see
                                           native/park_jvm.c
    rehearsal = '''...'''                  then: a program that it runs first, for what that loads and compiles
    boot_env = ["LC_*"]                    then: variables that count when it starts; a request that has one of them, or
                                           another memory limit than the usual, is executed
    imports = ["numpy"]                    the template is chosen when the program imports one of these
    pool_weight = 1.0                      parked sandboxes, as a multiple of the configured pool size
    [checks]                               a program a check; `checks` says which there must be and what each must do
    hello = '''...'''
    [without]                              a reason for each of those checks that the language cannot have
    argv = "the program has no command line"

Only `name`, `extension`, `file_name`, `argv` and the checks are required. In command lines the words {file}, {out} and
{build} become absolute paths: of the program's text, of what is compiled from it, and of the directory that is in.
Within words {name} becomes the name of the program's file and {memory_bytes} the step's limit. A command starts in the
work directory. Within words and variables {warm} is the directory that [warm] filled; where nobody has filled it, every
word and variable that names it is left out.

Packages of npm and PyPI are installed below /usr/lib/sandfork, in `npm/NAME/node_modules` and `pypi/NAME` for a
language's name; sandboxes see it as they see all of /usr. Images take wheels of `pypi` only. What has none, or wants
packages that have none, goes to `pypi_files`, as "hy==1.3.1 sha256:HASH" (of 64 digits): that file, a wheel or sources
of Python alone, is unpacked as it is, without what it depends on and without any of it being run.

Two files may share a template key when they say the same about it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sandfork.languages.checks import STANDARD
from sandfork.languages.imports import compile_scan
from sandfork.languages.language import (
    BUILD_DIR,
    BUILD_MARK,
    COMMAND,
    FILE_MARK,
    NAME_MARK,
    OUT_MARK,
    OUT_NAME,
    WARM_MARK,
    Check,
    CompileSpec,
    Language,
    Packages,
    TemplateKind,
    TemplateSpec,
    WarmSpec,
)
from sandfork.languages.tables import CatalogueError, Table
from sandfork.model import LimitsOverride

_KEYS = (
    "name", "aliases", "extension", "takes_extension", "file_name", "argv", "version", "needs", "packages", "session",
    "compile", "limits", "env", "template", "checks", "without", "warm", "bare",
)  # fmt: skip
_TEMPLATE_KEYS = (
    "key", "kind", "interpreter", "preload", "imports", "pool_weight", "fork_at", "start", "driver",
    "park_at", "rehearsal", "boot_env",
)  # fmt: skip
_FORK_AT = re.compile(r"(open|read|mark|fork)?")
_DRIVER = re.compile(r"([a-z_]+\.[a-z]+)?")
_NAME = re.compile(r"[a-z][a-z0-9+#._-]{0,31}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_EXTENSION = re.compile(r"\.[A-Za-z0-9+_-]{1,12}")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
_PATH = re.compile(r"/[^\0]*")
#: What no client of a registry takes for an option or a path.
_PACKAGE = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9+._/@=~^<>-]{0,99}")
_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}==[A-Za-z0-9.+!]{1,30} sha256:[0-9a-f]{64}")
_ARTEFACT = re.compile(r"[^/\0][^\0]*")
_WORDS_OF_THEIR_OWN = (FILE_MARK, OUT_MARK, BUILD_MARK)


def read_language(path: Path) -> Language:
    """Return the language a file describes. *Raises* CatalogueError, OSError."""
    with path.open("rb") as file:
        try:
            values = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CatalogueError(f"{path.name}: {error}") from None
    return parse_language(path.name, values)


def parse_language(where: str, values: Mapping[str, object]) -> Language:
    """Return the language a TOML table describes. *Raises* CatalogueError naming `where` and the key."""
    table = Table(where, values, _KEYS)
    compiled = _parse_compile(table) if "compile" in table else None
    templates = tuple(_complete(table, spec, compiled) for spec in _parse_templates(table))
    argv, env = _parse_argv(table, compiled), _parse_env(table)
    checks = _parse_checks(table, compiled=compiled is not None)
    language = Language(
        name=table.text("name", _NAME),
        aliases=table.texts("aliases", (), _NAME),
        extension=table.text("extension", _EXTENSION),
        file_name=table.text("file_name", _FILE_NAME),
        argv=argv,
        templates=templates,
        session_argv=_parse_session(table, templates[0], compiled=compiled is not None),
        compile=compiled,
        env=env,
        warm=_parse_warm(table, argv, compiled, env, templates, checks),
        limits=_parse_limits(table),
        version_argv=table.texts("version", ()),
        bare_argv=table.texts("bare", ()),
        packages=_parse_packages(table),
        needs=table.texts("needs", (), _PATH),
        takes_extension=table.flag("takes_extension"),
        checks=checks,
        without=tuple((key, table.table("without").text(key)) for key in table.table("without").names()),
        scans=tuple((spec, compile_scan(spec.imports)) for spec in templates if spec.imports),
    )
    return language.warmed("")


def _parse_argv(table: Table, compiled: CompileSpec | None) -> tuple[str, ...]:
    argv = table.texts("argv")
    marks = sum(word in _WORDS_OF_THEIR_OWN or NAME_MARK in word for word in argv)
    if compiled is None and (not argv or not argv[0].startswith("/") or marks != 1 or OUT_MARK in argv):
        table.refuse("argv", f"must start with an absolute path and name {FILE_MARK!r} or {NAME_MARK!r} once")
    if compiled is not None and (not argv or not (argv[0].startswith("/") or argv[0] == OUT_MARK)):
        table.refuse("argv", f"must start with an absolute path or be {OUT_MARK!r}")
    return _check_marks(table, argv)


def _check_marks(table: Table, argv: tuple[str, ...]) -> tuple[str, ...]:
    for word in argv:
        for mark in _WORDS_OF_THEIR_OWN:
            if mark in word and mark != word:
                table.refuse("argv", f"{mark!r} must be a word of its own, in {word!r}; a relative path needs no mark")
    return argv


def _parse_session(table: Table, default: TemplateSpec, *, compiled: bool) -> tuple[str, ...]:
    argv = table.texts("session", ())
    if argv and default.driven:
        table.refuse("session", f"the interpreter of a template of kind {default.kind} is running already")
    if argv and (compiled or not argv[0].startswith("/")):
        table.refuse("session", "must start with an absolute path, and a compiled language has none")
    return argv


def _parse_compile(table: Table) -> CompileSpec:
    inner = table.table("compile", ("argv", "artefacts", "imports", "limits"))
    argv = inner.texts("argv")
    if not argv or not argv[0].startswith("/") or not any(w == FILE_MARK or NAME_MARK in w for w in argv):
        inner.refuse("argv", f"must start with an absolute path and name {FILE_MARK!r} or {NAME_MARK!r}")
    artefacts = inner.texts("artefacts", (f"{BUILD_DIR}/{OUT_NAME}",), _ARTEFACT)
    return CompileSpec(_check_marks(inner, argv), artefacts, _parse_limits(inner), inner.texts("imports", (), _MODULE))


def _parse_warm(
    table: Table,
    run: tuple[str, ...],
    compiled: CompileSpec | None,
    env: tuple[tuple[str, str], ...],
    templates: tuple[TemplateSpec, ...],
    checks: tuple[Check, ...],
) -> WarmSpec | None:
    compiling = compiled.argv if compiled else ()
    named = any(WARM_MARK in text for text in (*run, *compiling, *(value for _, value in env)))
    if named != ("warm" in table):
        table.refuse("warm", f"is there if, and only if, a command line or a variable names {WARM_MARK!r}")
    if not named:
        return None
    if any(spec.kind is not TemplateKind.NONE and not spec.park_at for spec in templates):
        table.refuse("warm", "is for what is started with its argv: a template of another kind has started already")
    inner = table.table("warm", ("argv", "code"))
    argv = inner.texts("argv")
    if not argv or not argv[0].startswith("/"):
        inner.refuse("argv", "must start with an absolute path")
    hello = () if "code" in inner else (each.code for each in checks if each.name == "hello")
    code = inner.text("code", None, next(iter(hello), None))
    return WarmSpec(_check_marks(inner, argv), code, run, compiling, env)


def _parse_limits(table: Table) -> LimitsOverride:
    names = tuple(LimitsOverride.__dataclass_fields__)
    inner = table.table("limits", names)
    return LimitsOverride(
        wall_s=inner.number("wall_s", 0.1, 3600) if "wall_s" in inner else None,
        cpu_s=inner.number("cpu_s", 0.1, 3600) if "cpu_s" in inner else None,
        **{name: inner.whole(name) for name in names[2:] if name in inner},
    )


def _parse_env(table: Table) -> tuple[tuple[str, str], ...]:
    inner = table.table("env")
    return tuple((inner.match(name, name, _VARIABLE), inner.text(name)) for name in inner.names())


def _parse_packages(table: Table) -> Packages:
    inner = table.table("packages", ("debian", "npm", "pypi", "pypi_files"))
    patterns = {"pypi_files": _PINNED}
    return Packages(**{key: inner.texts(key, (), patterns.get(key, _PACKAGE)) for key in inner.names()})


def _parse_templates(table: Table) -> tuple[TemplateSpec, ...]:
    templates = tuple(
        _parse_template(f"{table.where}, template {number}", item)
        for number, item in enumerate(table.tables("template"), start=1)
    )
    if templates and templates[0].imports:
        table.refuse("template", "needs a default first: one without `imports`")
    if len({spec.key for spec in templates}) != len(templates):
        table.refuse("template", "a key is there twice")
    return templates or (COMMAND,)


def _parse_template(where: str, values: Mapping[str, object]) -> TemplateSpec:
    table = Table(where, values, _TEMPLATE_KEYS)
    kind = table.text("kind")
    if kind not in {known.value for known in TemplateKind}:
        table.refuse("kind", f"must be one of {', '.join(TemplateKind)}")
    spec = TemplateSpec(
        key=table.text("key", _NAME),
        kind=TemplateKind(kind),
        interpreter=table.text("interpreter", None, ""),
        preload=table.texts("preload", (), _MODULE),
        imports=table.texts("imports", (), _MODULE),
        pool_weight=table.number("pool_weight", 0, 1000),
        fork_at=table.text("fork_at", _FORK_AT, ""),
        start=table.texts("start", ()),
        driver=table.text("driver", _DRIVER, ""),
        park_at=table.text("park_at", None, ""),
        rehearsal=table.text("rehearsal", None, ""),
        boot_env=table.texts("boot_env", (), _VARIABLES),
    )
    _check_fork_at(table, spec)
    _check_park_at(table, spec)
    if spec.kind is TemplateKind.NONE and (spec.interpreter or spec.preload):
        table.refuse("interpreter", "a template of kind none has neither interpreter nor preload")
    if spec.kind is not TemplateKind.NONE and not spec.interpreter.startswith("/"):
        table.refuse("interpreter", "must be an absolute path")
    if spec.kind is not TemplateKind.FORK and spec.preload:
        table.refuse("preload", "only a template of kind fork imports modules")
    return spec


def _check_fork_at(table: Table, spec: TemplateSpec) -> None:
    if not spec.fork_at and (spec.start or spec.driver):
        table.refuse("start" if spec.start else "driver", "is for a template with `fork_at`")
    if spec.fork_at and (spec.kind is not TemplateKind.FORK or spec.preload):
        table.refuse("fork_at", "is for a template of kind fork that preloads nothing")


def _check_park_at(table: Table, spec: TemplateSpec) -> None:
    if not spec.park_at and (spec.rehearsal or spec.boot_env):
        table.refuse("rehearsal" if spec.rehearsal else "boot_env", "is for a template with `park_at`")
    if spec.park_at and (spec.kind is not TemplateKind.PARK or spec.imports):
        table.refuse("park_at", "is for a template of kind park that is chosen by no imports")


def _complete(table: Table, spec: TemplateSpec, compiled: CompileSpec | None) -> TemplateSpec:
    """Tell a template whose interpreter goes on by itself what it is to run."""
    if compiled is not None and spec.kind is TemplateKind.FORK and not compiled.program:
        table.refuse("template", "what forks is given its program: the first of `artefacts` must be a path, no pattern")
    if spec.park_at:
        argv = table.texts("argv")
        if spec.park_at not in argv[1:] or argv[0] != spec.interpreter:
            table.refuse("park_at", f"{spec.park_at!r} must be a word of an argv that starts with the interpreter")
        if spec.rehearsal and compiled:
            table.refuse("rehearsal", "is for interpreters: a compiled language has none")
        return replace(spec, start=argv, file_name=table.text("file_name"))
    if not spec.fork_at:
        return spec
    file_name = compiled.program if compiled else table.text("file_name")
    return replace(spec, start=spec.start or table.texts("argv"), file_name=file_name, env=_parse_env(table))


def _parse_checks(table: Table, *, compiled: bool) -> tuple[Check, ...]:
    """Return the checks; each standard one must be there, or excused with a reason."""
    inner, without = table.table("checks"), table.table("without")
    wanted = tuple(name for name in STANDARD if compiled or not STANDARD[name].of_compilers)
    for name in without.names():
        if name not in wanted or not without.text(name):
            without.refuse(name, f"must be one of {', '.join(wanted)}, with a reason")
        if name in inner:
            inner.refuse(name, "is there, and excused by `without`")
    for name in wanted:
        if name not in inner and name not in without:
            inner.refuse(name, "is missing, and not excused by `without`")
    return tuple(_parse_check(inner, name) for name in inner.names())


def _parse_check(table: Table, name: str) -> Check:
    value = table.table(name, ("code", "stdin", "args", "stdout")) if table.holds_table(name) else None
    if value is None:
        check = Check(name, table.text(name))
    else:
        check = Check(
            name,
            value.text("code"),
            value.text("stdin") if "stdin" in value else None,
            value.texts("args", ()),
            value.text("stdout") if "stdout" in value else None,
        )
    if name not in STANDARD and check.stdout is None:
        table.refuse(
            name, f"a check of one's own is a table with `code` and `stdout`; others are {', '.join(STANDARD)}"
        )
    return check
