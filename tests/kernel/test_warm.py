"""A warm cache is filled in a real sandbox, seen by every later one, and written by none."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from sandfork.config import Loaded, Machine, size
from sandfork.engine.engine import Engine, EngineSettings
from sandfork.engine.policy import LimitPolicy
from sandfork.errors import BuildFailed, ImageNotFound
from sandfork.languages.catalogue import COMMAND, Catalogue
from sandfork.model import Caller, ExecRequest, ExecResult, Limits, Outcome, Snippet
from sandfork.serve_caches import WARM_DIR, cache_store, hold_caches, seen_caches, with_caches
from sandfork.serve_warm import make_cache
from tests.support.process import STUCK_S, process_tier, start_native
from tests.support.warm import store_in, warm_language

SETTINGS = EngineSettings(policy=LimitPolicy(default=Limits(wall_s=5.0)))
#: What tries to change the cache, each way in a line; of those that succeed it prints the name.
ATTEMPTS = """
try() { name=$1; shift; "$@" 2>/dev/null && echo "$name"; }
attack() {
    try append sh -c "echo more >> $1/kept"
    try add touch $1/new
    try remove rm -f $1/kept
    try rename mv $1/kept $1/moved
    try mode chmod 777 $1/kept
    try times touch -d 2001-01-01 $1/kept
    try beside touch $1/../../new
}
"""
ALL = ["append", "add", "mode", "times", "remove", "rename", "beside"]
#: "Compiles" to a program that attacks; the compiler does so first. Both tell what they read in the cache.
ATTACK = (
    ATTEMPTS
    + """
{ cat $CACHE/kept; attack $CACHE; } > found 2>&1
{ echo '#!/bin/sh'; echo "echo by the compiler: '$(cat found)'"; sed -n '/^try()/,/^}/p' main.made
  echo 'echo by the program: $(cat $CACHE/kept)'; echo 'attack $CACHE; true'; } > "$1"
"""
)
CONTROL = (
    ATTEMPTS
    + """
mkdir -p a/b/c; echo x > a/b/c/kept
try append sh -c "echo more >> a/b/c/kept"; try add touch a/b/c/new; try mode chmod 777 a/b/c/kept
try times touch -d 2001-01-01 a/b/c/kept; try remove rm a/b/c/new; try rename mv a/b/c/kept a/b/c/moved
try beside touch a/b/new
"""
)


@pytest.fixture
def loaded(as_root: None) -> Iterator[Loaded]:
    """Settings with a store that a service without root can enter."""
    home = Path("/var/tmp") / f"sandfork-test-warm-{os.getpid()}"
    home.mkdir(mode=0o755)
    try:
        loaded = Loaded(store_in(home), {})
        keys = ("admission.max_running", "admission.max_queued", "pool.size", "pool.max_forking")
        yield size(replace(loaded, sources=dict.fromkeys(keys, "default")), Machine.probe())
    finally:
        shutil.rmtree(home)


def run_with_cache(loaded: Loaded, code: str) -> ExecResult:
    """Run a program of the language, compiled, with the warm cache that fits."""
    catalogue = with_caches(loaded.config, Catalogue([warm_language()]))
    launched = start_native()

    async def run() -> ExecResult:
        warm = hold_caches(loaded.config, catalogue)
        tier = process_tier(launched, catalogue=catalogue, warm_trees=seen_caches(loaded.config), warm=warm)
        try:
            async with asyncio.timeout(STUCK_S):
                await tier.start()
                engine = Engine(tier, catalogue, {COMMAND.key: 0}, SETTINGS)
                try:
                    return await engine.execute(ExecRequest(Snippet("made", code)), Caller("somebody"))
                finally:
                    await engine.close()
        finally:
            await tier.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def test_a_cache_is_seen_by_compiler_and_program_and_neither_can_change_it(loaded: Loaded) -> None:
    made = make_cache(loaded, "process", warm_language())
    tree = cache_store(loaded.config).tree(made) / WARM_DIR
    result = run_with_cache(loaded, ATTACK)
    assert (result.exit_code, result.stdout.decode().split("\n")) == (
        0, ["by the compiler: a program", "by the program: a program", ""]
    )  # fmt: skip
    assert [path.name for path in tree.iterdir()] == ["kept"]
    assert (tree / "kept").read_text() == "a program"
    assert sorted(path.name for path in tree.parent.parent.iterdir()) == [tree.parent.name]


def test_the_same_attempts_succeed_where_a_program_may_write(loaded: Loaded) -> None:
    make_cache(loaded, "process", warm_language())
    code = "{ echo '#!/bin/sh'; sed -n '/^try()/,$p' main.made; } > \"$1\"; exit\n" + CONTROL
    assert run_with_cache(loaded, code).stdout.decode().split() == ALL


def test_what_is_kept_belongs_to_root_and_nobody_else_may_write_it(loaded: Loaded) -> None:
    made = make_cache(loaded, "process", warm_language("umask 0; mkdir {warm}/open; echo x > {warm}/open/file"))
    store = cache_store(loaded.config)
    paths = [store.tree(made), *store.tree(made).rglob("*"), store.root / "manifests/made.json"]
    assert {(path.stat().st_uid, path.stat().st_mode & 0o022) for path in paths} == {(0, 0)}
    assert len(paths) == 6


def test_a_toolchain_that_fails_leaves_the_cache_as_it_was_and_its_last_words(loaded: Loaded) -> None:
    store = cache_store(loaded.config)
    with pytest.raises(BuildFailed, match="status 3: no such target"):
        make_cache(loaded, "process", warm_language("echo no such target >&2; exit 3"))
    with pytest.raises(ImageNotFound):
        store.get("made")
    before = make_cache(loaded, "process", warm_language())
    with pytest.raises(BuildFailed, match="status 4"):
        make_cache(loaded, "process", warm_language("exit 4"))
    assert store.get("made") == before


def test_a_toolchain_is_confined_while_it_fills_a_cache(loaded: Loaded) -> None:
    fill = "set +e; id -u; cat /etc/shadow; touch /usr/x; touch /run/sandfork/warm/x; exit 9"
    with pytest.raises(BuildFailed) as failure:
        make_cache(loaded, "process", warm_language(f"{{ {fill}; }} 2>&1"))
    said = str(failure.value)
    assert "\n0\n" not in said
    assert all(word in said for word in ("/etc/shadow: No such file", "'/usr/x': Read-only", "/warm/x': Read-only"))


def test_a_cache_that_was_replaced_goes_away_when_nobody_uses_it(loaded: Loaded) -> None:
    first = make_cache(loaded, "process", warm_language())
    second = make_cache(loaded, "process", warm_language("echo more >> {warm}/kept"))
    trees = cache_store(loaded.config).root / "trees"
    assert first.digest != second.digest
    assert [path.name for path in trees.iterdir()] == [second.digest.removeprefix("sha256:")]


def test_a_program_that_fills_no_cache_is_cold_and_runs(loaded: Loaded) -> None:
    result = run_with_cache(loaded, "printf '#!/bin/sh\\necho $CACHE.$PLAIN\\n' > \"$1\"; echo $#")
    assert (result.outcome, result.stdout) == (Outcome.EXITED, b".x\n")
