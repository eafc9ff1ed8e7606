"""Filling warm caches: a language's own toolchain does, in a sandbox that no caller's program was ever in.

Root is needed to keep what comes out, and running a toolchain needs none. So a child of this process gives root up, as
a service does, and has the sandbox; this process keeps root, takes a tar from the child over a pipe, checks it as any
image that comes from elsewhere, and publishes it. A child that fails says why over a second pipe, and then nothing is
published.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import IO

from sandfork.config import Config, Loaded
from sandfork.engine.engine import Engine
from sandfork.engine.paths import WORK_DIR
from sandfork.errors import BuildFailed, SandforkError
from sandfork.images.archive import Bounds
from sandfork.images.making import import_stream
from sandfork.images.manifest import Manifest
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.languages.language import BUILD_DIR, warm_env, warm_words
from sandfork.model import Display, ExecRequest, ExecResult, Limits, LimitsOverride, Outcome, Snippet, Stream
from sandfork.serve_caches import WARM_DIR, cache_key, cache_store
from sandfork.serve_local import CALLER, run_privately
from sandfork.serve_refusal import Refused

_CACHE_BYTES = 2 << 30
#: What a toolchain may use while it fills its cache; no caller can have it do so.
_LIMITS = Limits(
    wall_s=1800.0, cpu_s=3600.0, memory_bytes=3 << 30, pids=512, open_files=1024, output_bytes=2 * _CACHE_BYTES,
    disk_bytes=_CACHE_BYTES,
)  # fmt: skip
_FILL = f'mkdir -p {BUILD_DIR} {WARM_DIR} && "$@" >&2 && exec tar -cf - {WARM_DIR}'
_LAST_WORDS = 2000


def make_cache(loaded: Loaded, tier: str, language: Language) -> Manifest:
    """Have a language's warm cache filled and publish it, in place of an older one. *Raises* SandforkError, Refused."""
    config = loaded.config
    if config.process.reduced:
        raise Refused("a warm cache is not filled with process.reduced: fill it where the host grants namespaces")
    store, key = cache_store(config), cache_key(config, language)
    store.make()  # now, so that the toolchain finds the same places whether or not a cache was there before
    with _Filling(loaded, tier, language) as filling:
        made = import_stream(store, language.name, filling.tar, filling.confirm, key, Bounds(max_bytes=_CACHE_BYTES))
    store.collect()
    return made


class _Filling:
    """The child that has the sandbox: what comes out of it, and what became of it."""

    def __init__(self, loaded: Loaded, tier: str, language: Language) -> None:
        reading, writing = os.pipe()
        complaints, complaining = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(reading)
            os.close(complaints)
            _be_child(lambda: _fill(loaded, tier, language, writing), complaining)
        os.close(writing)
        os.close(complaining)
        self.tar: IO[bytes] = os.fdopen(reading, "rb")
        self._complaints: IO[bytes] = os.fdopen(complaints, "rb")

    def confirm(self) -> None:
        """Return once the child has ended well. *Raises* BuildFailed with what it says."""
        said = self._complaints.read().decode(errors="replace")
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if said or status:
            raise BuildFailed(
                said or f"what fills the warm cache ended with status {os.waitstatus_to_exitcode(status)}"
            )

    def __enter__(self) -> _Filling:
        return self

    def __exit__(self, *_: object) -> None:
        self.tar.close()  # a child that still writes learns of it, and ends
        if self._pid:
            os.waitpid(self._pid, 0)
        self._complaints.close()


def _be_child(fill: Callable[[], str], complaining: int) -> None:
    """Do the child's part and end; whatever goes wrong is told to the parent."""
    try:
        said = fill()
    except (SandforkError, Refused) as error:
        said = str(error)
    except BaseException:
        said = traceback.format_exc()
    with os.fdopen(complaining, "wb") as complaints:
        complaints.write(said.encode(errors="replace"))
    os._exit(bool(said))


def _fill(loaded: Loaded, tier: str, language: Language, writing: int) -> str:
    """Have the toolchain fill its cache, and write that as a tar; return what went wrong, or nothing."""
    filler = filling_language(language)
    assert language.warm is not None
    request = ExecRequest(Snippet(filler.name, language.warm.code), limits=_everything())
    sink = _Sink(writing)

    async def work(engine: Engine) -> ExecResult:
        return await engine.execute(request, CALLER, sink)

    private = replace(loaded, config=_unbounded(loaded.config))
    result = run_privately(private, tier, Catalogue([filler]), work)
    if result.outcome is Outcome.EXITED and result.exit_code == 0:
        return ""
    return f"{language.name}: filling the warm cache {result.outcome} with status {result.status}: {sink.last_words}"


def filling_language(language: Language) -> Language:
    """Return a language whose programs fill the warm cache of another: its toolchain, told to write there."""
    assert language.warm is not None
    here = f"{WORK_DIR}/{WARM_DIR}"
    return replace(
        language,
        argv=("/bin/sh", "-c", _FILL, "sh", *warm_words(language.warm.argv, here)),
        compile=None,
        env=warm_env(language.warm.env, here),
        templates=(language.commands,),
        warm=None,
        warm_path="",
    )


def _everything() -> LimitsOverride:
    return LimitsOverride(**{name: most for name, most in asdict(_LIMITS).items() if math.isfinite(most)})


def _unbounded(config: Config) -> Config:
    """Return settings whose ceilings let a cache be filled."""
    maximum = replace(config.limits.maximum, **{n: getattr(_LIMITS, n) for n in Limits.__dataclass_fields__})
    return replace(config, limits=replace(config.limits, maximum=maximum))


class _Sink:
    """Writes what comes as standard output to a descriptor, and keeps the end of what comes as errors."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._said = b""

    def output(self, stream: Stream, data: bytes) -> bool:
        """Take a chunk; a reader that is slow holds the sandbox up."""
        if stream is Stream.STDERR:
            self._said = (self._said + data)[-_LAST_WORDS:]
            return True
        while data:
            data = data[os.write(self._descriptor, data) :]
        return True

    def display(self, shown: Display) -> None:
        """Nothing: no rich values are asked for here."""

    @property
    def last_words(self) -> str:
        """What the toolchain said last."""
        return self._said.decode(errors="replace").strip() or "not a word"
