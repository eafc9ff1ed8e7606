"""What a service leaves when it is killed, what its programs leave when they end, and what keeps it from starting."""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import sandfork
from sandfork.linux.cgroup import host_cgroups
from tests.support.service import STUCK_S, Service, command, free_port, running_service
from tests.support.sessions import RemoteSession, read_until, shown, stream_of

PACKAGE = Path(sandfork.__file__).parent
#: The promise: within a second of its death nothing of a service is left running.
GONE_S = 1.0
IDS = 64 * 32768

pytestmark = pytest.mark.usefixtures("as_root")


@dataclass(frozen=True)
class Territory:
    """A range of uids and a cgroup that one service has for itself, so that whatever is left in them is its own."""

    uid_base: int
    parent: str

    @property
    def settings(self) -> str:
        """The settings that keep a service in here, with small pools."""
        return f"""
            [process]
            uid_base = {self.uid_base}
            cgroup_parent = "{self.parent}"
            [pool]
            size = 3
            sizes = {{ "python-numpy" = 0 }}
        """

    def processes(self) -> list[str]:
        """Return what runs here: processes of the uids, and root's janitor, known by the cgroup in its arguments."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                uid = path.stat().st_uid
                words = (path / "cmdline").read_bytes()
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            own = self.uid_base <= uid < self.uid_base + IDS or f"/{self.parent}/".encode() in words
            if own and state != "Z":
                found.append(f"{path.name} {words.decode(errors='replace')}")
        return found

    def cgroups(self) -> list[Path]:
        """Return the cgroups below the parent's."""
        parents = (hierarchy.mount / self.parent for hierarchy in host_cgroups().hierarchies)
        # os.walk passes over what goes while it looks.
        return [Path(path, name) for parent in parents for path, names, _ in os.walk(parent) for name in names]

    def left(self) -> list[str]:
        """Return everything of the service that is still there."""
        return [*self.processes(), *map(str, self.cgroups())]


@pytest.fixture
def territory() -> Iterator[Territory]:
    own = Territory(
        0x6000_0000 + IDS * random.randrange(64), f"sandfork-test-{os.getpid()}-{random.randrange(1 << 30)}"
    )
    parents = [hierarchy.mount / own.parent for hierarchy in host_cgroups().hierarchies]
    for parent in parents:
        parent.mkdir()
    yield own
    assert own.left() == []
    for parent in parents:
        parent.rmdir()


def soon(holds: Callable[[], bool], within_s: float) -> bool:
    """Ask until `holds` says yes or the time is over."""
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            return False
    return True


def host_mounts() -> list[str]:
    """Return the mounts of ours that the host sees, which is none."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if " - tmpfs sandfork " in line or " - tmpfs sandbox " in line]


def network_namespaces(pids: Iterable[str]) -> set[str]:
    """Return the network namespaces that these processes are in."""
    found = set()
    for pid in pids:
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            continue
    return found


# --- the end of a program ---

ESCAPES = {
    "daemon": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        sleep()\n    os._exit(0)",
    "deaf daemon": "for s in range(1, 65):\n"
    "    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\n"
    "if os.fork() == 0:\n    os.setsid(); signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); sleep()",
    "stopped child": "pid = os.fork()\nif pid == 0:\n    sleep()\n"
    "os.closerange(write_end, write_end + 1)\nos.read(read_end, 1)\nos.kill(pid, signal.SIGSTOP)",
    "subreaper": "libc.prctl(36, 1, 0, 0, 0)\nif os.fork() == 0:\n"
    "    if os.fork() == 0:\n        sleep()\n    os._exit(0)",
    "no death signal": "if os.fork() == 0:\n    libc.prctl(1, 0, 0, 0, 0); sleep()",
    "many": "for _ in range(20):\n    if os.fork() == 0:\n        os.setsid(); sleep()",
    "executed under another name": "if os.fork() == 0:\n    sleep('[kworker/0:1]')",
}
ESCAPE = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
read_end, write_end = os.pipe()
def sleep(name="sleep"):
    os.set_inheritable(write_end, False)
    os.execv("/bin/sleep", [name, "{mark}"])
{attempt}
os.closerange(write_end, write_end + 1)
os.read(read_end, 1)  # until whoever is to stay has been executed
print("left", flush=True)
"""


def sleepers(mark: str) -> list[int]:
    """Return the pids, on the host, of the processes that were to stay."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words[1:2]:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_outlives_its_program(name: str, service: Service, tmp_path: Path) -> None:
    mark = f"98765.{random.randrange(1 << 30)}"
    code = ESCAPE.format(mark=mark, attempt=ESCAPES[name])
    reply = service.exec(code, timeout_seconds=20)
    assert reply["stdout"] == "left\n", reply
    assert soon(lambda: not sleepers(mark), STUCK_S)
    # The control: on the host they stay.
    subprocess.run(
        ["/usr/bin/python3", "-c", code], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, timeout=STUCK_S
    )
    stayed = sleepers(mark)
    assert stayed
    for pid in stayed:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["timed_out", "cpu_limit", "output_limit", "out_of_memory"])
def test_however_a_program_is_ended_nothing_of_it_is_left(how: str, service: Service) -> None:
    mark = f"87654.{random.randrange(1 << 30)}"
    last = {
        "timed_out": "signal.pause()",
        "cpu_limit": "while True: pass",
        "output_limit": "while True: print('x' * 1000)",
        "out_of_memory": "x = []\nwhile True: x.append(bytearray(b'x') * (1 << 20))",
    }[how]
    limits = {"wall_s": 20, "cpu_s": 0.5, "output_bytes": 10_000, "memory_bytes": 48 << 20}
    if how == "timed_out":
        limits["wall_s"] = 0.7
    reply = service.exec(f"{ESCAPE.format(mark=mark, attempt=ESCAPES['many'])}\n{last}", limits=limits)
    assert reply["outcome"] == how, reply
    assert soon(lambda: not sleepers(mark), STUCK_S)


def test_every_process_of_a_program_is_in_its_cgroup_from_its_first_moment(
    territory: Territory, tmp_path: Path
) -> None:
    """While a storm of short processes runs, none is ever seen outside the cgroups made for programs."""
    code = "import os\nwhile True:\n    if os.fork() == 0:\n        os.fork(); os._exit(0)\n    os.wait()"
    seen: list[str] = []
    with running_service(tmp_path, config=territory.settings) as service:
        body = {"code": code, "limits": {"wall_s": 2, "cpu_s": 2}}
        thread = threading.Thread(
            target=httpx.post, args=(f"{service.url}/v1/exec",), kwargs={"json": body, "timeout": 60}
        )
        thread.start()
        while thread.is_alive():
            for path in Path("/proc").glob("[0-9]*"):
                try:
                    # Even numbers from the base on are the programs' uids; see native/slot.h.
                    uid = path.stat().st_uid - territory.uid_base
                    group = (path / "cgroup").read_text()
                except OSError:
                    continue
                if 0 <= uid < IDS and uid % 32768 % 2 == 0 and uid % 32768 >= 2:
                    seen += [line for line in group.splitlines() if f"/{territory.parent}/" in line]
        thread.join()
    assert len(seen) > 100
    assert all("/s" in line.rpartition(territory.parent)[2] and "keep" not in line for line in seen), set(seen)


# --- the end of a service ---


def begin(service: Service, code: str) -> threading.Thread:
    """Start a program that prints nothing, in the background, and return once it runs."""

    def ask() -> None:
        try:
            httpx.post(f"{service.url}/v1/exec", json={"code": code, "timeout_seconds": 100}, timeout=STUCK_S)
        except httpx.HTTPError:
            pass

    thread = threading.Thread(target=ask)
    thread.start()
    with service.client as client:
        assert soon(lambda: "zeroboot_concurrent_forks 1.0" in client.get("/v1/metrics").text, 20)
    return thread


@pytest.mark.parametrize("turn", range(3))
def test_a_killed_service_leaves_nothing_within_a_second(turn: int, territory: Territory, tmp_path: Path) -> None:
    with running_service(tmp_path, config=territory.settings) as service:
        thread = begin(service, ESCAPE.format(mark="4321.5", attempt=ESCAPES["deaf daemon"]) + "signal.pause()")
        assert len(territory.processes()) > 5
        assert territory.cgroups()
        namespaces = network_namespaces(line.split()[0] for line in territory.processes()) - network_namespaces(
            ["self"]
        )
        assert len(namespaces) > 2
        service.process.kill()
        service.process.wait()
        assert soon(lambda: not territory.left(), GONE_S), territory.left()
        thread.join()
    assert not sleepers("4321.5")
    assert not namespaces & network_namespaces(path.name for path in Path("/proc").glob("[0-9]*"))
    assert host_mounts() == []


@pytest.mark.parametrize("turn", range(6))
def test_a_service_killed_while_it_starts_leaves_nothing(turn: int, territory: Territory, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(territory.settings)
    argv = command("serve", "--config", str(settings), "--port", str(free_port()))
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(random.uniform(0.05, 1.0))
    process.kill()
    process.wait()
    assert soon(lambda: not territory.processes(), GONE_S), territory.processes()
    # Root may have been killed between making its cgroups and starting who removes them: the next start does.
    if territory.cgroups():
        with running_service(tmp_path, config=territory.settings):
            pass
        assert soon(lambda: not territory.left(), GONE_S), territory.left()


def test_the_next_start_sweeps_what_a_killed_janitor_left(territory: Territory, tmp_path: Path) -> None:
    with running_service(tmp_path, config=territory.settings) as service:
        thread = begin(service, "import signal; signal.pause()")
        janitors = [int(line.split()[0]) for line in territory.processes() if "sandfork-warden" in line]
        oldest = min(pid for pid in janitors if Path(f"/proc/{pid}").stat().st_uid == 0)
        os.kill(oldest, signal.SIGKILL)
        service.process.kill()
        service.process.wait()
        thread.join()
        assert soon(lambda: not territory.processes(), GONE_S), territory.processes()
        assert territory.cgroups(), "the control: nobody was there to remove them"
    with running_service(tmp_path, config=territory.settings) as service:
        assert service.exec("print(1)")["stdout"] == "1\n"
        assert not [path for path in territory.cgroups() if path.name == "s4000"]
    assert soon(lambda: not territory.left(), GONE_S), territory.left()


def test_a_killed_service_leaves_nothing_of_its_sessions(territory: Territory, tmp_path: Path) -> None:
    """Sessions at rest and at work, terminals with and without a client, a stream, a task, what steps left behind."""
    with running_service(tmp_path, config=territory.settings) as service, ExitStack() as stack:
        sessions = [stack.enter_context(orphaned_session(service)) for _ in range(4)]
        for session in sessions:
            session.run(ESCAPE.format(mark="4321.7", attempt=ESCAPES["deaf daemon"]))
            session.said("echo shell", "bash")
            session.open_terminal("/bin/sleep", "4321.7")
        stream = stream_of(
            service, code="print('begun', flush=True)\nimport time; time.sleep(99)", session=sessions[0].name
        )
        assert b"begun" in read_until(stream, b"begun")
        client = stack.enter_context(sessions[1].connected(sessions[1].open_terminal("/bin/cat")))
        client.send(b"typed\n")
        shown(client, b"typed")
        with service.client as http:
            assert http.post("/v1/tasks", json={"argv": ["/bin/sleep", "4321.7"]}).status_code == 202
        assert soon(lambda: len(sleepers("4321.7")) == 9, STUCK_S)
        service.process.kill()
        service.process.wait()
        assert soon(lambda: not territory.left(), GONE_S), territory.left()
        stream.close()
    assert not sleepers("4321.7")
    assert host_mounts() == []


@contextmanager
def orphaned_session(service: Service) -> Iterator[RemoteSession]:
    """A session that nobody ends, for its service is killed."""
    with service.client as client:
        session = RemoteSession(service, client.post("/v1/sessions", json={"language": "python"}).json()["id"])
    with session.client:
        yield session


def test_a_session_does_not_outlive_its_service(territory: Territory, tmp_path: Path) -> None:
    """Nothing of a session is written down: there is no state that could be damaged, and a next start knows none."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with (
        running_service(tmp_path / "first", config=territory.settings) as service,
        orphaned_session(service) as session,
    ):
        session.run("open('file', 'w').write('kept')")
        terminal = session.open_terminal("/bin/sleep", "4321.8")
        assert service.stop() == 0
        assert territory.left() == []
        assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["service.log", "settings.toml"]
    with running_service(tmp_path / "second", config=territory.settings) as service:
        after = RemoteSession(service, session.name)
        with after.client:
            for path in ("", "/files", "/files/file", f"/terminals/{terminal}"):
                assert after.ask("GET", path).status_code == 404
            assert after.post("print(1)").status_code == 404
        assert service.exec("print(1)")["stdout"] == "1\n"


def test_a_terminated_service_leaves_nothing(territory: Territory, tmp_path: Path) -> None:
    with running_service(tmp_path, config=territory.settings) as service:
        service.exec(ESCAPE.format(mark="4321.6", attempt=ESCAPES["many"]))
        assert service.stop() == 0
        assert territory.left() == []


def test_a_service_whose_warden_dies_ends_and_says_so(territory: Territory, tmp_path: Path) -> None:
    """Never on without isolation: what makes sandboxes is gone, so the service is."""
    with running_service(tmp_path, config=territory.settings) as service:
        wardens = [int(line.split()[0]) for line in territory.processes() if "sandfork-warden" in line]
        # The first uid of an instance is the warden's own.
        warden = next(pid for pid in wardens if (Path(f"/proc/{pid}").stat().st_uid or 1) % 32768 == 0)
        os.kill(warden, signal.SIGKILL)
        assert service.process.wait(STUCK_S) != 0
        assert "the process that makes sandboxes died" in service.log.read_text()
        assert soon(lambda: not territory.left(), GONE_S), territory.left()


def test_a_killed_template_is_replaced_and_its_sandboxes_answer_truly(territory: Territory, tmp_path: Path) -> None:
    with running_service(tmp_path, config=territory.settings) as service:
        for _ in range(3):
            zygotes = [int(line.split()[0]) for line in territory.processes() if "/proc/self/fd/6" in line]
            os.kill(min(zygotes), signal.SIGKILL)
            assert [service.exec(f"print({n})")["stdout"] for n in range(8)] == [f"{n}\n" for n in range(8)]


def test_what_sandboxes_take_of_per_user_allowances_is_not_roots(territory: Territory, tmp_path: Path) -> None:
    """The kernel charges queues, signals and watches of a user namespace to its owner: that must not be root."""
    with running_service(tmp_path, config=territory.settings):
        pids = [line.split()[0] for line in territory.processes() if "/proc/self/fd/6" in line]
        owners = {owner_of_user_namespace(pid) for pid in pids}
    assert owners
    assert all(territory.uid_base <= uid < territory.uid_base + IDS for uid in owners), owners
    with subprocess.Popen(["unshare", "--user", "sleep", "90"]) as control:
        own = os.readlink("/proc/self/ns/user")
        assert soon(lambda: os.readlink(f"/proc/{control.pid}/ns/user") != own, STUCK_S)
        assert owner_of_user_namespace(str(control.pid)) == 0, "the control: root owns what root makes"
        control.kill()


def owner_of_user_namespace(pid: str) -> int:
    """Ask with NS_GET_OWNER_UID, see ioctl_ns(2)."""
    with open(f"/proc/{pid}/ns/user") as namespace:
        return int.from_bytes(fcntl.ioctl(namespace, 0xB704, bytes(4)), sys.byteorder)


# --- what keeps it from starting ---


@contextmanager
def altered_package(directory: Path, changes: dict[str, tuple[str, str]]) -> Iterator[Path]:
    """Copy the package to where everybody may read it and change files of it."""
    # The server gives up root and must still be able to read itself.
    place = Path("/var/tmp") / f"sandfork-altered-{random.randrange(1 << 30)}"
    try:
        shutil.copytree(PACKAGE, place / "sandfork", ignore=shutil.ignore_patterns("__pycache__"))
        for name, (old, new) in changes.items():
            path = place / "sandfork" / name
            text = path.read_text()
            assert old in text, f"{name} no longer says {old!r}"
            path.write_text(text.replace(old, new))
        yield place
    finally:
        shutil.rmtree(place)


def refusal(directory: Path, argv: Sequence[str], settings: str, before: Sequence[str] = ()) -> str:
    """Start a service that must not start; return what it said."""
    file = directory / "refused.toml"
    file.write_text(settings)
    words = [*before, *argv, "--config", str(file), "--port", str(free_port())]
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=STUCK_S, check=False)
    assert done.returncode != 0, done
    assert "curl" not in done.stdout, "it announced itself"
    return done.stderr


BROKEN = {
    "seccomp": {"policy/seccomp.toml": ('"pidfd_send_signal", "prctl"', '"pidfd_send_signal", "prctl", "bpf"')},
    "landlock": {"linux/landlock.py": ("    if version < 1:", "    version = 0\n    if version < 1:")},
    "mounts": {"policy/root.toml": ('"/etc/shells" = ', '"/etc/shadow" = "root:*:"\n"/etc/shells" = ')},
    "disk limit": {
        "tiers/process/slots.py": (
            "        limits.disk_bytes,\n        inodes,",
            "        limits.disk_bytes * 64,\n        inodes,",
        )
    },
    "pids limit": {"tiers/process/slots.py": ("inodes,\n        limits.pids,", "inodes,\n        limits.pids * 64,")},
    "memory limit": {
        "tiers/process/slots.py": (
            "m.SlotLimits(\n        limits.memory_bytes,",
            "m.SlotLimits(\n        limits.memory_bytes * 64,",
        )
    },
}


@pytest.mark.parametrize("primitive", BROKEN)
def test_a_primitive_that_does_not_hold_keeps_the_service_from_starting(
    primitive: str, territory: Territory, tmp_path: Path
) -> None:
    with altered_package(tmp_path, BROKEN[primitive]) as place:
        argv = [arg.replace(str(PACKAGE.parent), str(place)) for arg in command("serve")]
        told = refusal(tmp_path, argv, territory.settings)
    assert primitive in told, told
    assert "Traceback" not in told
    assert soon(lambda: not territory.left(), STUCK_S)


def test_the_unbroken_package_starts_from_the_same_place(territory: Territory, tmp_path: Path) -> None:
    """The control of the breakages: a copy of the package without a change."""
    with altered_package(tmp_path, {}) as place:
        settings = tmp_path / "settings.toml"
        settings.write_text(territory.settings)
        argv = [arg.replace(str(PACKAGE.parent), str(place)) for arg in command("serve")]
        argv += ["--config", str(settings), "--port", str(free_port())]
        with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert b"answers at" in process.stdout.readline()
            process.terminate()
    assert soon(lambda: not territory.left(), STUCK_S)


#: Become root of a user namespace that maps every id, and let nobody in it make namespaces of one kind.
WITHOUT_NAMESPACES = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
ready, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    libc.prctl(1, 9, 0, 0, 0)
    assert libc.unshare(0x10020000) == 0
    os.write(ready[1], b"x"), os.read(go[0], 1)
    open(f"/proc/sys/user/max_{sys.argv[1]}_namespaces", "w").write("0")
    os.execvp(sys.argv[2], sys.argv[2:])
os.read(ready[0], 1)
for name in ("uid_map", "gid_map"):
    open(f"/proc/{pid}/{name}", "w").write("0 0 4294967295")
os.write(go[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def without_namespaces(kind: str) -> list[str]:
    return ["/usr/bin/python3", "-c", WITHOUT_NAMESPACES, kind]


def with_mounts(change: str) -> list[str]:
    """Change what is mounted, in a mount namespace that is thrown away."""
    return ["unshare", "--mount", "--", "sh", "-ec", f'{change}; exec "$@"', "sh"]


NO_CGROUPS = "umount -R /sys/fs/cgroup && mount -t tmpfs none /sys/fs/cgroup"
CLOSED_CGROUPS = (
    "for each in $(awk '$5 ~ /^.sys.fs.cgroup/ {print $5}' /proc/self/mountinfo);"
    " do mount -o remount,bind,ro $each; done"
)
MASKED_PROC = "mount -t tmpfs none /proc/acpi 2>/dev/null || mount -t tmpfs none /proc/sys"

#: Hosts that lack something, and what the refusal must name.
LACKING: dict[str, tuple[list[str], str]] = {
    "cgroups": (with_mounts(NO_CGROUPS), "cgroup memory"),
    "writable cgroups": (with_mounts(CLOSED_CGROUPS), "cgroup"),
    "user namespaces": (without_namespaces("user"), "user namespace"),
    "network namespaces": (without_namespaces("net"), "network namespace"),
    "pid namespaces": (without_namespaces("pid"), "pid namespace"),
    "cgroup namespaces": (without_namespaces("cgroup"), "cgroup_ns"),
    "an unmasked /proc": (with_mounts(MASKED_PROC), "/proc"),
}


@pytest.mark.parametrize("lacking", LACKING)
def test_a_host_that_lacks_a_primitive_is_told_so(lacking: str, territory: Territory, tmp_path: Path) -> None:
    before, named = LACKING[lacking]
    told = refusal(tmp_path, command("serve"), territory.settings, before)
    assert named in told, told
    assert "Traceback" not in told
    assert soon(lambda: not territory.left(), STUCK_S)


def test_what_is_accepted_by_name_is_served_and_told(territory: Territory, tmp_path: Path) -> None:
    """Degraded by an explicit word in the settings, and never silently: health names what is not enforced."""
    names = ["cgroup memory", "cgroup pids", "cgroup cpuacct", "cgroup cpu", "memory limit", "pids limit"]
    file = tmp_path / "settings.toml"
    file.write_text(territory.settings.replace("[process]", f"[process]\nallow_missing = {json.dumps(names)}"))
    port = free_port()
    argv = [*with_mounts(NO_CGROUPS), *command("serve"), "--config", str(file), "--port", str(port)]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], STUCK_S)
        assert ready
        assert process.stdout.readline(), (tmp_path / "errors").read_text()
        health: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/v1/health").json()
        told = " ".join(health["unenforced_limits"])
        assert "memory limit" in told
        assert "cpu limit" in told
    finally:
        process.terminate()
        process.wait(STUCK_S)
        assert process.stdout is not None
        process.stdout.close()
    assert soon(lambda: not territory.left(), STUCK_S)
