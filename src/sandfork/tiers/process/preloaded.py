"""How a zygote is started whose interpreter knows nothing of forking: with native/preload.c before its C library."""

from __future__ import annotations

from sandfork.languages.language import (
    BUILD_DIR,
    BUILD_MARK,
    DRIVER_MARK,
    FILE_MARK,
    FORK_MARK,
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


def preloaded(spec: TemplateSpec) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the command line of a template's zygote, and the variables of its own."""
    file = f"{_WORK_DIR}/{spec.file_name}"
    driver = f"{_WORK_DIR}/.{spec.driver}" if spec.driver else ""
    made = ((OUT_MARK, f"{_BUILD}/{OUT_NAME}"), (BUILD_MARK, _BUILD))
    marks = ((FILE_MARK, file), (NAME_MARK, spec.file_name), (FORK_MARK, _FORK), (DRIVER_MARK, driver), *made)
    words = []
    for word in spec.start:
        for mark, text in marks:
            word = word.replace(mark, text)
        words.append(word)
    told = f"{spec.fork_at} {file} {spec.interpreter} {driver}"
    return tuple(words), (*spec.env, ("SANDFORK_FORK", told), ("LD_PRELOAD", _PRELOAD), *BIND_NOW)
