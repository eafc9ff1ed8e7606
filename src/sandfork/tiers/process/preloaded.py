"""How what knows nothing of us is started: an interpreter that forks, with native/preload.c before its C library, and a
JVM that waits, with native/park_jvm.c before the library of its launcher.
"""

from __future__ import annotations

from sandfork.languages.language import (
    BUILD_DIR,
    BUILD_MARK,
    DRIVER_MARK,
    FILE_MARK,
    FORK_MARK,
    MEMORY_MARK,
    NAME_MARK,
    OUT_MARK,
    OUT_NAME,
    TemplateSpec,
)

BIND_NOW = (("LD_BIND_NOW", "1"),)
"""Symbols are resolved once, in the zygote, which takes the variable away again; lazily, every child would do it."""

_WORK_DIR = "/sandbox"
_PRELOAD = "/proc/self/fd/6"  # as the warden arranges descriptors; it is there in every image
_FORK = "/sandbox/.fork"
_BUILD = f"{_WORK_DIR}/{BUILD_DIR}"
_PARK = "/run/sandfork/park_jvm.so"


def preloaded(spec: TemplateSpec) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the command line of a template's zygote, and the variables of its own."""
    file = f"{_WORK_DIR}/{spec.file_name}"
    driver = f"{_WORK_DIR}/.{spec.driver}" if spec.driver else ""
    made = ((OUT_MARK, f"{_BUILD}/{OUT_NAME}"), (BUILD_MARK, _BUILD))
    marks = ((FILE_MARK, file), (NAME_MARK, spec.file_name), (FORK_MARK, _FORK), (DRIVER_MARK, driver), *made)
    words = _filled(spec.start, marks)
    told = f"{spec.fork_at} {file} {spec.interpreter} {driver}"
    return words, (*spec.env, ("SANDFORK_FORK", told), ("LD_PRELOAD", _PRELOAD), *BIND_NOW)


def booted(spec: TemplateSpec) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the command line of a JVM that waits, which is that of a program of it, and the variables of its own."""
    marks = (
        (FILE_MARK, f"{_WORK_DIR}/{spec.file_name}"),
        (NAME_MARK, spec.file_name),
        (BUILD_MARK, _BUILD),
        (MEMORY_MARK, str(spec.memory_bytes)),
    )
    rehearsal = (("SANDFORK_REHEARSAL", f"{spec.file_name}\n{spec.rehearsal}"),) if spec.rehearsal else ()
    return _filled(spec.start, marks), (*rehearsal, ("LD_PRELOAD", _PARK))


def _filled(words: tuple[str, ...], marks: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    filled = []
    for word in words:
        for mark, text in marks:
            word = word.replace(mark, text)
        filled.append(word)
    return tuple(filled)
