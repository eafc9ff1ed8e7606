"""Looking into a tree as one does who has it as `/`, whatever its links say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandfork.images.rooted import Rooted
from sandfork.tiers.process.plan import plan_root


def test_links_of_a_tree_lead_nowhere_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/tool").write_text("own")
    (tree / "bin").symlink_to("/usr/bin")
    (tree / "up").symlink_to("../../../../usr")
    (tree / "etc").symlink_to("/etc")
    (tree / "loop").symlink_to("loop")
    rooted = Rooted(str(tree))
    assert rooted.read("/bin/tool") == rooted.read("/up/bin/tool") == b"own"
    assert rooted.real("/up") == str(tree / "usr")
    assert (tree / "etc/passwd").exists(), "the control: to the host the link leads to the host's"
    for path in ("/etc/passwd", "/etc", "/loop", "/../../etc/passwd"):
        assert not rooted.exists(path), path
    assert list(rooted.matching("/usr/*/tool")) == ["/usr/bin/tool"]
    assert rooted.has("/usr/*/tool")
    assert rooted.has("/bin/tool")
    assert not rooted.has("/usr/*/other")
    assert not rooted.has("/etc/pass*"), "a pattern follows no link out of the tree, either"


def test_a_plan_over_a_tree_binds_nothing_of_the_host(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "real/bin").mkdir(parents=True)
    (tree / "usr").symlink_to("/real")
    (tree / "etc/ssl").mkdir(parents=True)
    (tree / "etc/ssl/certs").symlink_to("/../../../../../etc/ssl/certs")
    plan = plan_root(None, {}, Rooted(str(tree)))
    binds = [field for field in plan.plan.split(b"\0") if field.startswith((b"/usr", b"/etc/ssl"))]
    assert str(tree / "real").encode() in plan.plan
    assert b"/etc/ssl/certs" not in binds
    with pytest.raises(OSError, match="No such file"):
        plan_root(None, {}, Rooted(str(tmp_path / "nothing")))
