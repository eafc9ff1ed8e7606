"""What is told of a build that fails: the reason first, and a full disk as what it is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sandfork.errors import BuildFailed
from sandfork.images import building
from sandfork.images.progress import tell_nobody


def fail(said: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a command say that and fail, without the namespaces that take root."""
    monkeypatch.setattr(building, "_CONFINED", ())
    building._Runner(tree, 1 << 20, tell_nobody)(("/bin/sh", "-c", f"cat <<'END'\n{said}\nEND\nexit 25"), 0.0)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Err:1 http://deb x\nE: Failed to fetch  http://deb \nE: mmdebstrap failed to run",
            "Failed to fetch http://deb",
        ),
        ("E: Can not write log (Is /dev/pts mounted?)\nE: Unable to locate package x", "Unable to locate package x"),
        ("npm error code E404", "code E404"),
        ("ERROR: No matching distribution found for x", "No matching distribution found for x"),
        ("E: the first\n" + "I: more\n" * 1000, "the first"),
    ],
)
def test_the_reason_is_in_the_first_line(
    said: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BuildFailed) as failure:
        fail(said, tmp_path, monkeypatch)
    first, _, last_words = failure.value.message.partition("\n")
    assert first == f"/bin/sh failed with status 25: {reason}"
    assert said.strip()[-100:] in last_words


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space left on device") as failure:
        fail("Err:6\n  Write error - write (28: No space left on device)\nE: mmdebstrap failed", tmp_path, monkeypatch)
    assert failure.value.errno == errno.ENOSPC
