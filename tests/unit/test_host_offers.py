"""What a host or a container offers: its ids, its capabilities, and what is told when it refuses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from sandfork.errors import TierUnavailable
from sandfork.linux import ids
from sandfork.linux.seccomp import PolicyError, _narrowed, compile_policy
from sandfork.model import Limits, Step
from sandfork.tiers.process import LaunchSettings, obstacles
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.launch import choose_uids
from sandfork.tiers.process.reduced import readable_paths
from sandfork.tiers.process.run import Means, cpu_seconds, run_frame

EVERYTHING = "         0          0 4294967295\n"
ROOTLESS = "         0       1000          1\n         1     100000      65536\n"
DOCKER_CAPABILITIES = "Name:\tx\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n"


# --- ids and capabilities ---


def test_ids_are_ours_to_give_when_one_extent_of_the_map_has_them_all() -> None:
    assert ids.is_mapped(0x70010000, 0x8000, EVERYTHING)
    assert not ids.is_mapped(0x70010000, 0x8000, ROOTLESS)
    assert ids.is_mapped(20_000, 0x2000, ROOTLESS)
    assert not ids.is_mapped(0, 2, ROOTLESS)
    assert not ids.is_mapped(65_000, 1_000, ROOTLESS)
    assert not ids.is_mapped(1, 1, "")


def test_the_capabilities_of_a_plain_container_are_enough_for_a_reduced_service() -> None:
    held = ids.effective_capabilities(DOCKER_CAPABILITIES)
    assert all(held & 1 << number for number in ids.REDUCED_CAPABILITIES.values())
    assert not held & 1 << 21  # SYS_ADMIN


def mapped_by(id_map: str) -> Callable[[int, int], bool]:
    return lambda first, count: ids.is_mapped(first, count, id_map)


@pytest.mark.parametrize(("id_map", "first"), [(EVERYTHING, 0x70010000 + 0x8000), (ROOTLESS, 20_000 + 0x2000)])
def test_a_service_takes_the_usual_uids_or_fewer_where_a_container_has_few(id_map: str, first: int) -> None:
    assert choose_uids(LaunchSettings(Path("warden")), 1, mapped_by(id_map))[0] == first


def test_a_reduced_service_has_other_uids_than_one_of_the_same_number_that_has_namespaces() -> None:
    def taken(*, reduced: bool) -> list[tuple[int, int]]:
        settings = LaunchSettings(Path("warden"), uid_base=100_000, reduced=reduced)
        return [choose_uids(settings, number, mapped_by(EVERYTHING)) for number in range(64)]

    usual, reduced = taken(reduced=False), taken(reduced=True)
    assert set(usual) == set(reduced) == {(100_000 + number * 0x8000, 0x8000) for number in range(64)}
    assert all(one != other for one, other in zip(usual, reduced, strict=True))


@pytest.mark.parametrize("reduced", [False, True])
def test_a_small_container_has_its_first_uids_for_either_kind_of_service(reduced: bool) -> None:
    settings = LaunchSettings(Path("warden"), reduced=reduced)
    assert choose_uids(settings, 0, mapped_by(ROOTLESS)) == (20_000, 0x2000)


def test_uids_that_were_configured_are_never_exchanged_for_others() -> None:
    with pytest.raises(TierUnavailable, match=r"100000 to 132767 are not mapped .* uid_base"):
        choose_uids(LaunchSettings(Path("warden"), uid_base=100_000), 0, mapped_by(ROOTLESS))


def test_the_instances_of_a_small_container_end_where_its_ids_do() -> None:
    settings = LaunchSettings(Path("warden"))
    ends = [sum(choose_uids(settings, number, mapped_by(ROOTLESS))) for number in range(5)]
    assert max(ends) <= 65_536
    with pytest.raises(TierUnavailable):
        choose_uids(settings, 6, mapped_by(ROOTLESS))


# --- what would help ---


@pytest.fixture
def plain_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root of a container that covers nothing, with cgroups that it can write."""
    monkeypatch.setattr(obstacles.os, "geteuid", lambda: 0)
    monkeypatch.setattr(obstacles.os, "access", lambda *_: True)
    monkeypatch.setattr(obstacles, "_proc_is_masked", lambda: False)
    monkeypatch.setattr(obstacles, "_is_confined_by_apparmor", lambda: False)


@pytest.mark.usefixtures("plain_root")
def test_only_the_options_that_are_needed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacles.container_options({}, cgroups=False) == []
    assert obstacles.container_options({"pid namespace"}, cgroups=False) == ["--security-opt seccomp=unconfined"]
    assert obstacles.container_options({"mounting /proc"}, cgroups=False) == ["--security-opt systempaths=unconfined"]
    assert obstacles.container_options({}, cgroups=True) == ["--cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup:rw"]
    monkeypatch.setattr(obstacles, "_is_confined_by_apparmor", lambda: True)
    assert "--security-opt apparmor=unconfined" in obstacles.container_options({"mounting"}, cgroups=False)


@pytest.mark.usefixtures("plain_root")
def test_the_refusal_names_each_thing_and_the_switch_for_root_only(monkeypatch: pytest.MonkeyPatch) -> None:
    told = obstacles.explain({"user namespace": errno.EPERM}, cgroups="/sys/fs/cgroup/x: Read-only file system")
    assert "user namespace (Operation not permitted)" in told
    assert "cgroups (/sys/fs/cgroup/x: Read-only file system)" in told
    assert "--reduced" in told
    monkeypatch.setattr(obstacles.os, "geteuid", lambda: 1000)
    assert "--reduced" not in obstacles.explain({"user namespace": errno.EPERM})


@pytest.mark.parametrize(
    ("name", "bad", "good", "binds_root"),
    [
        ("user/max_user_namespaces", "0", "15000", True),
        ("kernel/unprivileged_userns_clone", "0", "1", False),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0", False),
    ],
)
def test_who_may_not_make_user_namespaces_is_told_which_setting_of_the_host_forbids_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, bad: str, good: str, *, binds_root: bool
) -> None:
    setting = tmp_path / name
    setting.parent.mkdir()
    setting.write_text(f"{bad}\n")
    monkeypatch.setattr(obstacles, "_SETTINGS", tmp_path)
    advice = f"As root of the host: sysctl -w {name.replace('/', '.')}={good}."
    for capabilities, is_bound in ((0, True), (1 << 21, binds_root)):
        monkeypatch.setattr(ids, "effective_capabilities", lambda held=capabilities: held)
        assert (advice in obstacles.explain({"pid namespace": errno.EPERM})) is is_bound
    monkeypatch.setattr(ids, "effective_capabilities", lambda: 0)
    setting.write_text(f"{good}\n")
    assert "sysctl" not in obstacles.explain({"pid namespace": errno.EPERM})


def test_what_the_probe_prints_is_read_back_once_each(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.write_text("#!/bin/sh\n[ $1 = --probe ] && printf '1 mounting\\n13 mounting\\n38 pid namespace\\n'\n")
    probe.chmod(0o755)
    assert obstacles.refused_calls(probe) == {"mounting": 1, "pid namespace": 38}


# --- what differs without namespaces ---


def test_the_reduced_policy_is_smaller_and_names_no_group_that_is_not_there() -> None:
    assert len(compile_policy(reduced=True).allow) < len(compile_policy().allow)
    policy = {"allow": {"files": ["open", "truncate"], "ipc": ["shmat"]}, "rule": [{"call": "socket"}, {"calls": {}}]}
    change = {"without_groups": ["ipc"], "without_calls": ["truncate", "socket"], "rule": [{"call": "socketpair"}]}
    narrowed = _narrowed(policy, change)
    assert narrowed == {"allow": {"files": ["open"]}, "rule": [{"calls": {}}, {"call": "socketpair"}]}
    with pytest.raises(PolicyError, match="no group nothing"):
        _narrowed(policy, change | {"without_groups": ["nothing"]})


def test_the_list_of_readable_paths_has_what_is_there_and_the_programs_own_entries(tmp_path: Path) -> None:
    paths = readable_paths([tmp_path]).split(b"\0")
    assert b"R/usr/bin" in paths
    assert b"R/proc/self/status" in paths
    assert b"W/dev/null" in paths
    assert b"R" + bytes(tmp_path) in paths
    assert not any(path[1:].startswith((b"/usr/local", b"/tmp/..", b"/home", b"/root", b"/var")) for path in paths)
    with pytest.raises(TierUnavailable, match="bytes"):
        readable_paths([Path("/" + "x" * 5000)])


def fields(frame: bytes) -> list[tuple[str, bytes]]:
    (_, body), *_ = m.FrameReader(1 << 20).feed(frame)
    found, at = [], 0
    while at < len(body):
        tag, length = m.FRAME.unpack_from(body, at)
        found.append((chr(tag), body[at + 8 : at + 8 + length]))
        at += 8 + length
    return found


def test_a_program_without_a_sandbox_directory_is_told_its_own_in_words_and_environment() -> None:
    means = Means(rlimits=True, work_root="/run/x")
    step = Step(("/usr/bin/node", "/sandbox/main.js", "/sandbox", "/sandboxes", "a/sandbox"), env=(("HOME", "/else"),))
    sent = fields(run_frame(step, Limits(pids=5, memory_bytes=9), b"", means, means.work_dir(3)))
    words = [value.rstrip(b"\0").decode() for tag, value in sent if tag == "a"]
    assert words == ["/usr/bin/node", "/run/x/s3/main.js", "/run/x/s3", "/sandboxes", "a/sandbox"]
    env = [value.rstrip(b"\0").decode() for tag, value in sent if tag == "e"]
    assert env == ["HOME=/run/x/s3", "TMPDIR=/run/x/s3/.tmp", "HOME=/else"]
    assert dict(sent)["k"] == (5).to_bytes(8, "little")
    assert dict(sent)["m"] == (9).to_bytes(8, "little")


def test_with_namespaces_and_cgroups_run_carries_neither() -> None:
    sent = dict(fields(run_frame(Step(("/sandbox/main.py",)), Limits(), b"", Means(), Means().work_dir(3))))
    assert sent["a"] == b"/sandbox/main.py\0"
    assert not {"e", "k", "m"} & set(sent)


def test_processor_seconds_are_exact_where_nothing_else_counts_them() -> None:
    limits = Limits(cpu_s=0.2)
    assert cpu_seconds(limits, Means(rlimits=True)) == 1
    assert cpu_seconds(limits, Means()) == 2
    assert cpu_seconds(Limits(cpu_s=3), Means(rlimits=True)) == 3
