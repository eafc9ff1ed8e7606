"""A request, a caller, the languages and the policy in; a plan without open questions out. Pure: no clock, no I/O.

What a program is started as depends on its template. A `resident` interpreter is already running, so the step's argv is
what follows it: `sys.argv`. For others it is the whole command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import cast

from sandfork.engine.compilation import command_words, fill_memory, plan_compilation, raise_defaults
from sandfork.engine.paths import WORK_DIR, normalise_path
from sandfork.engine.policy import LimitPolicy, resolve_limits
from sandfork.errors import Forbidden, InvalidRequest, LanguageGone, NotSupported, UnknownLanguage
from sandfork.languages.catalogue import COMMAND, Catalogue, Language, TemplateSpec
from sandfork.languages.language import MEMORY_MARK
from sandfork.model import (
    Caller,
    Command,
    ExecPlan,
    ExecRequest,
    InputFile,
    Limits,
    LimitsOverride,
    SessionSpec,
    Snippet,
    Step,
)

ISOLATIONS = ("reduced", "process", "gvisor", "microvm")
"""What can be asked for, weakest first; a request names the least it takes."""

DEFAULT_LANGUAGE = "python"

NOTHING: Mapping[str, str] = MappingProxyType({})

_START_IN = ("/bin/sh", "-c", 'mkdir -p -- "$0" && cd -- "$0" && exec "$@"')
"""The words before a directory and a command, which run it there; /bin/sh is told the directory as its own name."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Planner:
    """Turns requests into plans; holds what does not change between them."""

    def __init__(self, catalogue: Catalogue, policy: LimitPolicy, isolation: str) -> None:
        """`isolation` is what the tier offers, one of `ISOLATIONS`."""
        self._policy = policy
        self._isolation = isolation
        self._ever: set[str] = set()  # the names and aliases of all languages that there are or were
        self.adopt(catalogue)

    def adopt(self, catalogue: Catalogue) -> None:
        """Plan with this catalogue from now on."""
        self._catalogue = catalogue
        languages = catalogue.languages()
        self._ever.update(name for language in languages for name in (language.name, *language.aliases))
        self._commands = {language.name: command_words(language, language.argv) for language in languages}
        self._command_templates = {spec.key: spec for spec in (COMMAND, *(each.commands for each in languages))}
        self._sized = frozenset(each.name for each in languages if any(MEMORY_MARK in word for word in each.argv))
        self._policies = {language.name: raise_defaults(self._policy, language.limits) for language in languages}

    def plan(
        self,
        exec_id: str,
        request: ExecRequest,
        caller: Caller,
        unavailable: Mapping[str, str] = NOTHING,
        spoken: str | None = None,
    ) -> ExecPlan:
        """Return the plan of `request`. `unavailable` holds the keys of templates that cannot be made just now.

        `spoken` is the language of what names none.

        *Raises* InvalidRequest, UnknownLanguage, LanguageGone, Forbidden (naming the ceiling), NotSupported.
        """
        self._refuse_unsupported(request)
        program = request.program
        language = None if isinstance(program, Command) else self._spoken(program.language, spoken)
        policy = self._policy if language is None else self._policies[language.name]
        limits = resolve_limits(request.limits, policy, caller)
        self._check_stdin(request.stdin)
        commands = self._commands_named(request.template) if language is None else language.commands
        if isinstance(program, Command):
            template, step = commands, self._plan_command(request, program)
        else:
            assert language is not None
            template, step = self._plan_snippet(request, program, language, limits, unavailable)
        if request.work_dir:
            template, step = commands, self._start_elsewhere(request, language, template, step)
        self._check_space(step, limits)
        compilation = None
        if language is not None and language.compile is not None:
            compilation = plan_compilation(language, step.code or b"", step.files, limits, self._policy, caller)
            step = replace(step, file_name=language.compile.program if template.resident else None, code=None)
        return ExecPlan(
            exec_id, caller, COMMAND.key if language is None else language.name, template.key, step, limits,
            self._check_collect(request.collect) if request.collect else (),
            self._isolation,
            request.session,
            request.secrets,
            _named(request.limits) if request.session is not None else frozenset(),
            compilation,
            commands.key,
            template.image,
        )  # fmt: skip

    def language_of(self, name: str | None) -> tuple[str, str]:
        """Return a language's name and its default template, for a session; without one a command's.

        *Raises* UnknownLanguage, LanguageGone.
        """
        if name is None:
            return COMMAND.key, COMMAND.key
        language = self._find(name)
        return language.name, language.session_template.key

    def _spoken(self, named: str | None, of_session: str | None) -> Language:
        return self._find(named if named is not None else of_session or DEFAULT_LANGUAGE)

    def _find(self, name: str) -> Language:
        language = self._catalogue.find(name)
        if language is None:
            raise LanguageGone(name) if name in self._ever else UnknownLanguage(name, self._catalogue.names())
        return language

    def session_limits(self, spec: SessionSpec, caller: Caller) -> Limits:
        """Return the limits of a new session. *Raises* InvalidRequest, Forbidden, NotSupported."""
        self._refuse_sessions()
        return resolve_limits(spec.limits, self._policy, caller)

    @property
    def most_cpu_s(self) -> float:
        """The most processor time that anything may be given."""
        return self._policy.maximum.cpu_s

    def check_env(self, env: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Return an environment that programs can be given. *Raises* InvalidRequest."""
        return self._check_env(env) if env else ()

    def _refuse_unsupported(self, request: ExecRequest) -> None:
        if request.network != "none":
            if request.network == "host":
                raise Forbidden("network: 'host' is above the server's ceiling of 'none'")
            raise NotSupported(f"network: {request.network!r} is not available on this server; use 'none'")
        if request.packages:
            raise NotSupported("packages: installing packages is not available on this server; send files instead")
        if request.session is not None:
            self._refuse_sessions()
        if request.isolation is None or request.isolation == self._isolation:
            return
        if request.isolation not in ISOLATIONS:
            raise InvalidRequest("isolation", f"must be one of {', '.join(ISOLATIONS)}")
        if ISOLATIONS.index(request.isolation) > ISOLATIONS.index(self._isolation):
            raise NotSupported(
                f"isolation: {request.isolation!r} is not available on this server: {self._isolation!r} is"
            )

    def _refuse_sessions(self) -> None:
        if self._isolation == "reduced":
            raise NotSupported("session: sessions need namespaces, which this server does without")

    def _commands_named(self, key: str | None) -> TemplateSpec:
        """Return the template of commands that has that key: the host's, or one an image. *Raises* InvalidRequest."""
        found = self._command_templates.get(key or COMMAND.key)
        if found is None:
            known = ", ".join(self._command_templates)
            raise InvalidRequest("template", f"a command runs in none but these: {known}")
        return found

    def _plan_command(self, request: ExecRequest, command: Command) -> Step:
        words = self._check_words("argv", command.argv + request.args)
        if not words or not words[0]:
            raise InvalidRequest("argv", "must name a program")
        env = self._check_env(request.env) if request.env else ()
        files = self._check_files(request.files, None) if request.files else ()
        return Step(words, None, None, env, request.stdin, files, keep_stdin=request.keep_stdin)

    def _plan_snippet(
        self,
        request: ExecRequest,
        program: Snippet,
        language: Language,
        limits: Limits,
        unavailable: Mapping[str, str],
    ) -> tuple[TemplateSpec, Step]:
        """Return the template and the step."""
        env = self._check_env(request.env) if request.env else ()
        args = self._check_words("args", request.args) if request.args else ()
        code = self._check_code(program)
        template = _choose_template(language, program.code, request.template, unavailable)
        takes = template.takes(limits.memory_bytes, [name for name, _ in env])
        if not takes or (template.park_at and request.session is not None):
            template = language.commands
        files = self._check_files(request.files, language.file_name) if request.files else ()
        argv = self._commands[language.name]
        if language.name in self._sized:
            argv = fill_memory(argv, limits.memory_bytes)
        if language.env:
            env = (*((name, value) for name, value in language.env if name not in dict(env)), *env)
        warm = bool(template.fork_at) and not args and env == language.env and language.name not in self._sized
        if template.resident:
            argv = argv[1:]
        lasting = request.session is not None and not request.session.fresh and language.lasts
        if lasting:
            argv = self._lasting_argv(language, template, argv, request)
        step = Step(
            argv + args,
            language.file_name,
            code,
            env,
            request.stdin,
            files,
            lasting,
            request.rich and template.resident,
            request.keep_stdin,
            warm,
        )
        return template, step

    def _lasting_argv(
        self, language: Language, template: TemplateSpec, argv: tuple[str, ...], request: ExecRequest
    ) -> tuple[str, ...]:
        """Return how an interpreter that keeps its state is started. *Raises* InvalidRequest."""
        if request.keep_stdin:
            raise InvalidRequest("stdin", "an interpreter of a session is given its stdin whole; use a terminal")
        if template.driven:
            return argv
        if "\0" in cast(Snippet, request.program).code:
            raise InvalidRequest("code", f"{language.name} in a session takes no NUL")
        return language.session_argv

    def _start_elsewhere(
        self, request: ExecRequest, language: Language | None, template: TemplateSpec, step: Step
    ) -> Step:
        """Return a step that starts in another directory, by a shell: a warm interpreter is in its own already.

        *Raises* InvalidRequest.
        """
        if step.lasting:
            raise InvalidRequest("work_dir", "only a program of its own starts in a directory of its own")
        path = normalise_path("work_dir", request.work_dir)
        if path.startswith("/"):
            raise InvalidRequest("work_dir", f"must be below {WORK_DIR}")
        argv = step.argv
        if template.resident and language is not None:
            argv = (language.argv[0], *argv)
        return replace(step, argv=(*_START_IN, f"{WORK_DIR}/{path}", *argv), rich=False, warm=False)

    def _check_code(self, program: Snippet) -> bytes:
        try:
            code = program.code.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("code", "is not valid Unicode") from None
        if len(code) > self._policy.max_code_bytes:
            raise InvalidRequest("code", f"is larger than {self._policy.max_code_bytes} bytes")
        return code

    def _check_words(self, field: str, words: tuple[str, ...]) -> tuple[str, ...]:
        if len(words) > self._policy.max_args:
            raise InvalidRequest(field, f"has more than {self._policy.max_args} words")
        if sum(_size_text(field, word) + 1 for word in words) > self._policy.max_args_bytes:
            raise InvalidRequest(field, f"is larger than {self._policy.max_args_bytes} bytes")
        return words

    def _check_env(self, env: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        if len(env) > self._policy.max_env:
            raise InvalidRequest("env", f"has more than {self._policy.max_env} variables")
        size = 0
        for name, value in env:
            if _ENV_NAME.fullmatch(name) is None:
                raise InvalidRequest(
                    "env", f"{name[:64]!r} is no name: letters, digits and '_', not starting with a digit"
                )
            size += len(name) + _size_text("env", value) + 2
        if size > self._policy.max_env_bytes:
            raise InvalidRequest("env", f"is larger than {self._policy.max_env_bytes} bytes")
        if len({name for name, _ in env}) != len(env):
            raise InvalidRequest("env", "a name is there twice")
        return env

    def _check_files(self, files: tuple[InputFile, ...], program_file: str | None) -> tuple[InputFile, ...]:
        if len(files) > self._policy.max_files:
            raise InvalidRequest("files", f"has more than {self._policy.max_files} files")
        if sum(len(file.content) for file in files) > self._policy.max_files_bytes:
            raise InvalidRequest("files", f"is larger than {self._policy.max_files_bytes} bytes")
        checked = tuple(InputFile(normalise_path("files", f.path), f.content, f.mode) for f in files)
        _refuse_collisions(checked, program_file)
        for file in checked:
            if file.mode & ~0o777:
                raise InvalidRequest("files", f"{file.path!r}: a mode is at most 0o777")
        return checked

    def _check_stdin(self, stdin: bytes) -> None:
        if len(stdin) > self._policy.max_stdin_bytes:
            raise InvalidRequest("stdin", f"is larger than {self._policy.max_stdin_bytes} bytes")

    def _check_space(self, step: Step, limits: Limits) -> None:
        size = len(step.code or b"") + sum(len(file.content) for file in step.files)
        if size > limits.disk_bytes:
            raise InvalidRequest("files", f"{size} bytes do not fit into limits.disk_bytes = {limits.disk_bytes}")

    def _check_collect(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if len(patterns) > self._policy.max_collect:
            raise InvalidRequest("collect", f"has more than {self._policy.max_collect} paths")
        return tuple(normalise_path("collect", pattern) for pattern in patterns)


def _named(limits: LimitsOverride) -> frozenset[str]:
    return frozenset(name for name in LimitsOverride.__dataclass_fields__ if getattr(limits, name) is not None)


def _choose_template(language: Language, code: str, wanted: str | None, unavailable: Mapping[str, str]) -> TemplateSpec:
    if wanted is None:
        return language.choose_template(code, unavailable)
    template = language.template_named(wanted)
    if template is None:
        known = ", ".join(spec.key for spec in language.templates)
        raise InvalidRequest("template", f"{wanted[:64]!r} is no template of {language.name}: {known}")
    return template


def _refuse_collisions(files: tuple[InputFile, ...], program_file: str | None) -> None:
    """Refuse a path named twice, or as both a file and a directory. *Raises* InvalidRequest."""
    taken = {program_file} if program_file else set()
    directories: set[str] = set()
    for file in files:
        path = file.path
        if path in taken:
            raise InvalidRequest("files", f"{path!r} is there twice, or is the program's own file")
        taken.add(path)
        while "/" in path[1:]:
            path = path.rpartition("/")[0]
            directories.add(path)
    if not taken.isdisjoint(directories):
        raise InvalidRequest("files", f"{min(taken & directories)!r} is both a file and a directory")


def _size_text(field: str, text: str) -> int:
    """Return the size of `text` in bytes. *Raises* InvalidRequest when no program could be given it."""
    if "\0" in text:
        raise InvalidRequest(field, "must not hold NUL")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(field, "is not valid Unicode") from None
