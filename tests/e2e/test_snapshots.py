"""Snapshots by the service itself, with real sandboxes and the real builder, and by the command line with a bucket."""

from __future__ import annotations

import os
import select
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.s3 import BUCKET, s3_server
from tests.support.service import Service, run_command, running_service, until_made


@contextmanager
def running_with(directory: Path, place: str) -> Iterator[Service]:
    """Run a service whose images are at a place that it may read after it gave root up."""
    Path(place).chmod(0o755)
    with running_service(directory, env={"SANDFORK_IMAGES_DIRECTORY": place}) as service:
        yield service


def builders_of(server: int) -> list[int]:
    """Return the pids of the builder of a service."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"serve_workshop" in words and (parent == server or parent in found):
                found.append(int(entry.name))
    return found


def test_a_snapshot_is_made_used_and_removed_over_http(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place, running_with(tmp_path, place) as service, service.client as client:
        made = client.post("/api/v1/snapshots", json={"language": "python", "name": "small", "mem_mb": 64, "vcpus": 1})
        assert (made.status_code, made.json()) == (202, {"message": "snapshot creation started", "language": "python"})
        entry = until_made(client, "snapshots", "small")
        assert (entry["status"], entry["error"], entry["mem_size"]) == ("ready", None, 64 << 20)
        assert entry["toolchain"].startswith("Python 3")
        assert entry["vmstate_size"] == Path(place, "snapshots/small.json").stat().st_size
        code = "x = bytearray(200 << 20)"
        run = client.post("/v1/exec", json={"snapshot": "small", "code": code}).json()
        assert (run["outcome"], run["limits"]["memory_bytes"]) == ("out_of_memory", 64 << 20)
        assert (run["limits"]["cpus"], run["limits"]["cpu_s"]) == (1.0, 30)
        said = client.post("/api/v1/execute", json={"snapshot": "small", "language": "python", "code": "print(2)"})
        assert said.json()["stdout"] == "2\n"
        wrong = client.post("/api/v1/execute", json={"snapshot": "small", "language": "nodejs", "code": "1"})
        assert wrong.status_code == 400
        assert client.delete("/api/v1/snapshots/small").status_code == 200
        gone = client.post("/v1/exec", json={"snapshot": "small", "code": code})
        assert (gone.status_code, gone.json()["code"]) == (404, "snapshot_not_found")


def test_the_builder_ends_with_a_killed_service(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        (first, *_) = builders_of(service.process.pid)
        ended = os.pidfd_open(first)
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()
        assert select.select([ended], [], [], 30.0)[0], "the builder lives on"
        os.close(ended)


def test_the_command_line_makes_pushes_and_pulls_one(tmp_path: Path) -> None:
    with s3_server() as server, tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        settings = {
            "SANDFORK_REMOTE_BUCKET": BUCKET,
            "SANDFORK_REMOTE_ENDPOINT": server.url,
            "SANDFORK_REMOTE_REGION": "us-east-1",
            "SANDFORK_REMOTE_ACCESS_KEY": server.access_key,
            "SANDFORK_REMOTE_SECRET_KEY": server.secret_key,
        }
        here = {**settings, "SANDFORK_IMAGES_DIRECTORY": place}
        there = {**settings, "SANDFORK_IMAGES_DIRECTORY": str(tmp_path / "there")}

        def run(*words: str, env: dict[str, str]) -> str:
            done = run_command(*words, cwd=tmp_path, env=env)
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout.decode()

        run("snapshot", "create", "python", "--name", "warm", "--mem-mb", "64", env=here)
        assert "warm" in run("snapshot", "list", env=here)
        run("snapshot", "push", "warm", env=here)
        assert "warm" in run("snapshot", "list", "--remote", env=there)
        run("snapshot", "pull", "warm", env=there)
        pulled = tmp_path / "there/snapshots/warm.json"
        assert pulled.read_bytes() == Path(place, "snapshots/warm.json").read_bytes()
        run("snapshot", "remove", "warm", env=there)
        missing = run_command("snapshot", "pull", "nothing", cwd=tmp_path, env=there)
        assert missing.returncode == 1
        assert b"has no snapshot 'nothing'" in missing.stderr
        assert b"Traceback" not in missing.stderr


def test_one_that_cannot_be_kept_is_told_in_one_line_and_nothing_is_logged_beside(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        Path(place, "snapshots/small.json").mkdir(parents=True)
        words = "snapshot", "create", "python", "--name", "small"
        done = run_command(*words, cwd=tmp_path, env={"SANDFORK_IMAGES_DIRECTORY": place})
        assert done.returncode == 1
        assert done.stderr.decode() == f"sandfork: the store of snapshots in {place}/snapshots: Is a directory\n"
