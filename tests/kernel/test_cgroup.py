"""Which cgroup hierarchies are chosen from recorded mounts, what is read of a slot, what is made and removed.

The guest of tests/vm runs the same code on a kernel with v2 only; the last part here runs on whatever this host mounts.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandfork.linux.cgroup import (
    Figures,
    Hierarchy,
    SlotMeter,
    find_hierarchies,
    host_cgroups,
    make_instance,
    processes_below,
    remove_tree,
)
from sandfork.linux.descriptors import Spare

SYS = Path("/sys/fs/cgroup")
ALL = "cpuset cpu io memory hugetlb pids rdma misc"

#: A Firecracker guest: every v1 controller mounted by itself, v2 beside them without any.
HYBRID = """\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
#: Debian 10 with systemd: cpu and cpuacct are one hierarchy, and so are two that are of no use here.
CO_MOUNTED = """\
30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
31 25 0:27 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
35 25 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct
36 25 0:32 / /sys/fs/cgroup/net_cls,net_prio rw,nosuid,relatime shared:16 - cgroup cgroup rw,net_cls,net_prio
37 25 0:33 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:17 - cgroup cgroup rw,pids
38 25 0:34 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:18 - cgroup cgroup rw,memory
"""
#: Debian 12 with systemd.
V2 = (
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
)
#: A container over v1: the mounts show only its own part of each hierarchy, and read-only.
CONTAINER_V1 = """\
640 639 0:30 /docker/6d7e /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:14 - cgroup cgroup rw,memory
641 639 0:31 /docker/6d7e /sys/fs/cgroup/pids ro,nosuid,nodev,noexec,relatime master:15 - cgroup cgroup rw,pids
642 639 0:32 /docker/6d7e /sys/fs/cgroup/cpu,cpuacct ro,nosuid,relatime master:16 - cgroup cgroup rw,cpu,cpuacct
"""


def chosen(mountinfo: str, v2_controllers: str = "") -> dict[str, Path]:
    return {h.name: h.mount for h in find_hierarchies(mountinfo, v2_controllers).hierarchies}


# --- which hierarchies ---


def test_a_v2_host_has_one_hierarchy_for_everything() -> None:
    host = find_hierarchies(V2, ALL)
    assert host.hierarchies == (Hierarchy("unified", ("memory", "pids", "cpu"), SYS),)
    assert host.missing == ()
    assert host.unified


def test_a_v2_host_names_the_controllers_it_was_not_given() -> None:
    host = find_hierarchies(V2, "memory pids")
    assert host.hierarchies == (Hierarchy("unified", ("memory", "pids"), SYS),)
    assert host.missing == ("cpu",)


def test_a_v2_host_without_any_controller_is_of_no_use() -> None:
    host = find_hierarchies(V2, "")
    assert (host.hierarchies, host.missing) == ((), ("memory", "pids", "cpu"))


def test_a_hybrid_host_uses_v1_for_its_v2_has_no_controllers() -> None:
    names = ("memory", "pids", "cpuacct", "cpu")
    assert chosen(HYBRID) == {name: SYS / name for name in names}
    assert find_hierarchies(HYBRID, "").missing == ()
    assert not find_hierarchies(HYBRID, "").unified


def test_a_hybrid_host_that_moved_all_controllers_to_v2_uses_v2() -> None:
    assert chosen(HYBRID, ALL) == {"unified": SYS / "unified"}


def test_a_hybrid_host_that_moved_some_controllers_names_those_v1_lacks() -> None:
    mounts = "".join(line for line in HYBRID.splitlines(keepends=True) if "/memory" not in line)
    host = find_hierarchies(mounts, "memory")
    assert [h.name for h in host.hierarchies] == ["pids", "cpuacct", "cpu"]
    assert host.missing == ("memory",)


def test_controllers_mounted_together_are_one_hierarchy_under_the_name_whose_figures_are_read() -> None:
    hierarchies = find_hierarchies(CO_MOUNTED, "").hierarchies
    assert [(h.name, h.mount.name) for h in hierarchies] == [
        ("memory", "memory"),
        ("pids", "pids"),
        ("cpuacct", "cpu,cpuacct"),
    ]
    assert hierarchies[-1].controllers == ("cpu", "cpuacct")
    assert find_hierarchies(CO_MOUNTED, "").missing == ()


def test_a_container_sees_its_part_of_v1_where_it_is_mounted() -> None:
    assert chosen(CONTAINER_V1) == {
        "memory": SYS / "memory",
        "pids": SYS / "pids",
        "cpuacct": SYS / "cpu,cpuacct",
    }


def test_a_hierarchy_mounted_twice_is_used_once() -> None:
    again = CO_MOUNTED + CO_MOUNTED.replace("/sys/fs/cgroup", "/host/sys/fs/cgroup")
    assert chosen(again) == chosen(CO_MOUNTED)


def test_a_host_without_cgroups_lacks_all() -> None:
    host = find_hierarchies("22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n", "")
    assert (host.hierarchies, host.unified) == ((), False)
    assert set(host.missing) == {"memory", "pids", "cpuacct", "cpu"}


# --- figures ---


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def v2_slot(root: Path, **change: str) -> SlotMeter:
    files = {
        "cpu__stat": "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnr_periods 0\n",
        "memory__current": "4096\n",
        "memory__peak": "8192\n",
        "memory__events": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\noom_group_kill 1\n",
        "pids__events": "max 3\n",
        "pids__peak": "5\n",
    }
    write(root / "s4", **(files | change))
    return SlotMeter({"unified": root}, 4, unified=True, spare=Spare())


def v1_slot(root: Path) -> SlotMeter:
    write(root / "cpuacct/s4", cpuacct__usage="9000\n", cpuacct__usage_user="100\n", cpuacct__usage_sys="200\n")
    oom = "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n"
    write(
        root / "memory/s4",
        memory__usage_in_bytes="4096\n",
        memory__max_usage_in_bytes="8192\n",
        memory__oom_control=oom,
    )
    write(root / "pids/s4", pids__events="max 3\n")
    directories = {name: root / name for name in ("memory", "pids", "cpuacct", "cpu")}
    return SlotMeter(directories, 4, unified=False, spare=Spare())


def test_the_figures_of_v2_are_in_nanoseconds_and_bytes(tmp_path: Path) -> None:
    figures = v2_slot(tmp_path).figures()
    assert figures == Figures(2_000_000, 1_000_000, memory_peak_bytes=8192, memory_bytes=4096, processes=5)


def test_the_processor_time_before_the_program_is_not_counted(tmp_path: Path) -> None:
    meter = v2_slot(tmp_path)
    meter.baseline()
    write(tmp_path / "s4", cpu__stat="usage_usec 13000\nuser_usec 9000\nsystem_usec 4000\n")
    assert meter.cpu_ns() == 10_000_000
    assert (meter.figures().cpu_user_ns, meter.figures().cpu_system_ns) == (7_000_000, 3_000_000)


def test_v2_counts_what_the_kernel_killed_and_refused_in_this_cgroup(tmp_path: Path) -> None:
    meter = v2_slot(tmp_path)
    meter.baseline()
    assert meter.events() == (2, 3)


def test_a_kernel_without_peaks_tells_none(tmp_path: Path) -> None:
    meter = v2_slot(tmp_path)
    (tmp_path / "s4/memory.peak").unlink()
    (tmp_path / "s4/pids.peak").unlink()
    assert (meter.figures().memory_peak_bytes, meter.figures().processes) == (0, 0)


def test_the_figures_of_a_v2_slot_are_of_the_cgroup_that_is_there_now(tmp_path: Path) -> None:
    meter = v2_slot(tmp_path)
    meter.baseline()
    meter.figures()
    for file in (tmp_path / "s4").iterdir():
        file.unlink()
    v2_slot(tmp_path, memory__peak="16384\n")
    meter.baseline()
    assert meter.figures().memory_peak_bytes == 16384


def test_v1_counts_from_the_baseline_for_its_cgroups_outlive_their_tenants(tmp_path: Path) -> None:
    meter = v1_slot(tmp_path)
    meter.baseline()
    usage = str(9000 + 9_000_000)
    write(tmp_path / "cpuacct/s4", cpuacct__usage=usage, cpuacct__usage_user="130\n", cpuacct__usage_sys="260\n")
    write(tmp_path / "memory/s4", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    figures = meter.figures()
    assert meter.cpu_ns() == 9_000_000
    assert (figures.cpu_user_ns, figures.cpu_system_ns) == (3_000_000, 6_000_000)
    assert meter.events() == (1, 3)
    meter.close()


def test_v1_calls_user_what_is_too_short_for_the_ticks_to_split(tmp_path: Path) -> None:
    meter = v1_slot(tmp_path)
    meter.baseline()
    write(tmp_path / "cpuacct/s4", cpuacct__usage="9900\n", cpuacct__usage_user="100\n", cpuacct__usage_sys="900\n")
    figures = meter.figures()
    assert (figures.cpu_user_ns, figures.cpu_system_ns) == (900, 0)
    meter.close()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have no file opened in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.open(os.devnull, os.O_RDONLY)
    os.close(next_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("slot", [v1_slot, v2_slot])
def test_figures_are_told_where_no_descriptor_is_left(tmp_path: Path, slot: Callable[[Path], SlotMeter]) -> None:
    calm, scarce = slot(tmp_path), slot(tmp_path)
    calm.baseline()
    told = calm.figures(), calm.events()
    with no_descriptors():
        scarce.baseline()
        for _ in range(2):  # what is lent comes back
            assert (scarce.figures(), scarce.events()) == told
    calm.close()
    scarce.close()


def test_without_cgroups_there_are_no_figures() -> None:
    meter = SlotMeter({}, 0, unified=False, spare=Spare())
    meter.baseline()
    assert (meter.figures(), meter.cpu_ns(), meter.events()) == (Figures(0, 0, 0, 0, 0), 0, (0, 0))


# --- the real host ---


@pytest.fixture
def instance(as_root: None) -> Iterator[tuple[Hierarchy, Path]]:
    """A directory of our own in the hierarchy that counts memory."""
    hierarchies = host_cgroups().hierarchies
    if not hierarchies:
        pytest.skip("this host mounts no cgroup controller")
    try:
        made, lock = make_instance(hierarchies[0], "", f"sandfork-test-{os.getpid()}", 54321)
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield hierarchies[0], made
    os.close(lock)
    assert remove_tree(made) or not made.exists()


def test_an_instance_belongs_to_the_uid_it_was_made_for(instance: tuple[Hierarchy, Path]) -> None:
    _, made = instance
    assert made.stat().st_uid == 54321
    assert (made / "keep").is_dir()
    assert (made / "keep").stat().st_uid == 0


def test_an_instance_that_is_there_is_not_made_again_nor_harmed(instance: tuple[Hierarchy, Path]) -> None:
    hierarchy, made = instance
    with pytest.raises(FileExistsError):
        make_instance(hierarchy, "", made.name, 54321)
    assert (made / "keep").is_dir()


def test_an_instance_is_held_also_where_it_is_seen_from_other_namespaces(instance: tuple[Hierarchy, Path]) -> None:
    _, made = instance
    attempt = f"from pathlib import Path; from sandfork.linux.cgroup import hold; hold(Path({str(made)!r}))"
    there = ["unshare", "--mount", "--pid", "--cgroup", "--fork", sys.executable, "-c", attempt]
    refused = subprocess.run(there, capture_output=True, text=True, check=False)
    assert "BlockingIOError" in refused.stderr, refused.stderr
    other, lock = make_instance(instance[0], "", f"{made.name}-other", 54321)
    os.close(lock)
    there[-1] = attempt.replace(str(made), str(other))
    subprocess.run(there, check=True)
    assert remove_tree(other)


def test_an_instance_with_a_process_is_not_removed_and_the_process_is_found(instance: tuple[Hierarchy, Path]) -> None:
    _, made = instance
    (made / "keep/deeper").mkdir()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        (made / "keep/deeper/cgroup.procs").write_text(str(child.pid))
        assert list(processes_below(made)) == [child.pid]
        assert not remove_tree(made)
        assert made.is_dir()
    assert list(processes_below(made)) == []
    assert remove_tree(made)
    assert not made.exists()


def test_a_parent_that_is_not_there_is_named(instance: tuple[Hierarchy, Path]) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/sandfork-9"):
        make_instance(instance[0], "nowhere", "sandfork-9", 54321)


def test_a_start_that_fails_midway_leaves_no_directory(tmp_path: Path) -> None:
    """A plain directory has no controllers to give, as a v2 parent that was not given any."""
    with pytest.raises(FileNotFoundError, match="subtree_control"):
        make_instance(Hierarchy("unified", ("memory",), tmp_path), "", "sandfork-0", os.getuid())
    assert list(tmp_path.iterdir()) == []


def test_the_process_of_another_container_is_not_taken_for_our_own_group(tmp_path: Path) -> None:
    """cgroup.procs shows as 0 what is outside of our pid namespace, and a signal to pid 0 goes to ourselves."""
    write(tmp_path / "s0", cgroup__procs="0\n17\n")
    write(tmp_path, cgroup__procs="")
    assert list(processes_below(tmp_path)) == [17]
