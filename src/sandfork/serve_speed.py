"""How long a language's hello program takes, beside the bare toolchain.

Bare is the same command lines, run here one after the other in a directory of their own, unconfined. The ways take
turns, so that what else the machine does is shared by all of them; of each the median counts. A program that is
compiled runs both anew and with its artefacts kept from the run before.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sandfork.engine.compilation import command_words, fill_memory
from sandfork.engine.engine import Engine
from sandfork.engine.paths import WORK_DIR
from sandfork.languages.catalogue import Language
from sandfork.languages.checks import check_request
from sandfork.languages.language import BUILD_DIR
from sandfork.model import ExecRequest
from sandfork.serve_local import CALLER

log = logging.getLogger(__name__)

_PARKED = 2
_ENOUGH_S, _LEAST = 40.0, 3
"""A language that is slow is measured no longer, but so many times at least."""
_LOOK_S, _LOOKS = 0.005, 4000
_BARE_S = 120.0
_BARE_MEMORY_BYTES = 1 << 30
_BARE_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians in seconds: of the bare toolchain, of an execution, and of one whose artefacts were there."""

    bare_s: float
    run_s: float
    cached_s: float | None

    @property
    def ratio(self) -> float:
        """An execution compared with the bare toolchain."""
        return self.run_s / self.bare_s

    @property
    def cached_ratio(self) -> float | None:
        """The same with artefacts that were there."""
        return None if self.cached_s is None else self.cached_s / self.bare_s


async def measure(engine: Engine, language: Language, runs: int) -> Speed | None:
    """Measure the hello program of a language that passes its checks; None where its bare toolchain does not run.

    *Raises* RuntimeError when the program fails in the sandbox.
    """
    hello = next(check for check in language.checks if check.name == "hello")
    request = check_request(language, hello)
    keys = {language.choose_template(hello.code).key, *(["command"] if language.compile else [])}
    for key in keys:
        engine.resize(key, _PARKED)
    bare, run, cached = [], [], []
    try:
        began_s = time.perf_counter()
        for done in range(runs):
            if done >= _LEAST and time.perf_counter() - began_s > _ENOUGH_S:
                break
            bare.append(await asyncio.to_thread(run_bare, language, request))
            engine.forget_artefacts()
            run.append(await _time(engine, request, keys))
            if language.compile:
                cached.append(await _time(engine, request, keys))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-300:]
        log.warning("%s: its bare toolchain does not run: %s", language.name, said)
        return None
    finally:
        for key in keys:
            engine.resize(key, 0)
    return Speed(statistics.median(bare), statistics.median(run), statistics.median(cached) if cached else None)


async def _time(engine: Engine, request: ExecRequest, keys: set[str]) -> float:
    await _until_parked(engine, keys)
    began_s = time.perf_counter()
    result = await engine.execute(request, CALLER)
    took_s = time.perf_counter() - began_s
    if result.status:
        raise RuntimeError(f"hello ended with {result.status}: {result.stderr!r}")
    return took_s


async def _until_parked(engine: Engine, keys: set[str]) -> None:
    """Wait until the pool is as full as in a service that is not busy."""
    for _ in range(_LOOKS):
        if all(each.parked >= _PARKED for each in engine.statistics().pool if each.key in keys):
            return
        await asyncio.sleep(_LOOK_S)
    raise RuntimeError(f"no sandboxes of {', '.join(sorted(keys))} were parked within {_LOOKS * _LOOK_S:g} s")


def run_bare(language: Language, request: ExecRequest) -> float:
    """Compile and run a program without any sandbox; return the seconds that took. *Raises* CalledProcessError.

    A warm cache is ours and not the toolchain's: it has none here.
    """
    language = language.warmed("")
    hello = next(check for check in language.checks if check.name == "hello")
    with tempfile.TemporaryDirectory(prefix="sandfork-bare-") as directory:
        Path(directory, language.file_name).write_text(hello.code)
        Path(directory, BUILD_DIR).mkdir()
        env = {name: value.replace(WORK_DIR, directory) for name, value in language.env}
        env |= _BARE_ENV | {"HOME": directory, "TMPDIR": directory}
        steps = [language.compile.argv] if language.compile else []
        began_s = time.perf_counter()
        for argv in (*steps, language.argv):
            words = fill_memory(command_words(language, argv), _BARE_MEMORY_BYTES)
            words = (*language.bare_argv, *(word.replace(WORK_DIR, directory) for word in words))
            stdin = request.stdin if argv == language.argv else b""
            subprocess.run(words, cwd=directory, env=env, check=True, input=stdin, capture_output=True, timeout=_BARE_S)
        return time.perf_counter() - began_s
