"""How a program is compiled, planned: a language, a text and limits in; the compiler's step out. Pure.

The compiler runs in a sandbox of its own, and the program in a fresh one that is given what the language's file names
as artefacts and nothing else: so a program does the same whether its artefacts are new or were kept from an earlier
run, has its own limits alone, and meets nothing that the compiler left behind. The compiler does not see the request's
environment.
"""

from __future__ import annotations

from dataclasses import fields, replace

from sandfork.engine.paths import WORK_DIR
from sandfork.engine.policy import LimitPolicy, resolve_limits
from sandfork.errors import InvalidRequest
from sandfork.languages.language import (
    BUILD_DIR,
    BUILD_MARK,
    FILE_MARK,
    MEMORY_MARK,
    NAME_MARK,
    OUT_MARK,
    OUT_NAME,
    Language,
)
from sandfork.model import Caller, Compilation, InputFile, Limits, LimitsOverride, Step

_BUILD_MARKER = InputFile(f"{BUILD_DIR}/.made", b"")
"""Putting it makes the directory, where a compiler may expect it."""


def command_words(language: Language, argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command line of a language with every mark replaced but that of the memory limit."""
    whole = {
        FILE_MARK: f"{WORK_DIR}/{language.file_name}",
        OUT_MARK: f"{WORK_DIR}/{BUILD_DIR}/{OUT_NAME}",
        BUILD_MARK: f"{WORK_DIR}/{BUILD_DIR}",
    }
    return tuple(whole.get(word) or word.replace(NAME_MARK, language.file_name) for word in argv)


def fill_memory(argv: tuple[str, ...], memory_bytes: int) -> tuple[str, ...]:
    """Return a command line that tells its program how much memory there is, where it has a mark for that."""
    return tuple(word.replace(MEMORY_MARK, str(memory_bytes)) for word in argv)


def raise_defaults(policy: LimitPolicy, least: LimitsOverride) -> LimitPolicy:
    """Return `policy` whose defaults are at least those limits, as far as its ceilings allow."""
    raised = {}
    for item in fields(Limits):
        wanted = getattr(least, item.name)
        if wanted is not None:
            usual = getattr(policy.default, item.name)
            raised[item.name] = max(usual, min(wanted, getattr(policy.maximum, item.name)))
    return replace(policy, default=replace(policy.default, **raised)) if raised else policy


def plan_compilation(
    language: Language, code: bytes, files: tuple[InputFile, ...], program: Limits, policy: LimitPolicy, caller: Caller
) -> Compilation:
    """Return what compiles `code`, beside `files`; memory and files may be as large as the program's may.

    *Raises* InvalidRequest.
    """
    spec = language.compile
    assert spec is not None
    for file in files:
        if file.path == BUILD_DIR or file.path.startswith(BUILD_DIR + "/"):
            raise InvalidRequest("files", f"{BUILD_DIR!r} is the compiler's own directory")
    limits = resolve_limits(LimitsOverride(), raise_defaults(policy, spec.limits), caller)
    limits = replace(
        limits,
        memory_bytes=max(limits.memory_bytes, program.memory_bytes),
        disk_bytes=max(limits.disk_bytes, program.disk_bytes),
    )
    argv = fill_memory(command_words(language, spec.argv), limits.memory_bytes)
    step = Step(argv, language.file_name, code, language.env, b"", (_BUILD_MARKER, *files))
    return Compilation(step, limits, spec.artefacts, language.programs)
