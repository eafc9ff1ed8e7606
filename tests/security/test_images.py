"""Images and snapshots over the HTTP API: names that are paths or built-in, hostile documents, secrets."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.security.conftest import ENVIRONMENT, SECRET
from tests.support.service import Service, running_service

SETTINGS = f"""
# {SECRET}
[languages]
enable = ["python", "bash"]
[pool]
size = 1
sizes = {{ "python-numpy" = 0 }}
[images]
max_snapshots = 4
[remote]
bucket = "none"
endpoint = "http://127.0.0.1:9"
region = "nowhere"
access_key = "{SECRET}"
secret_key = "{SECRET}"
tries = 1
"""
PATHS = (
    "../outside", "../../outside", "..", ".", "/etc/passwd", "a/../../outside", "a/b", "..\\outside", "%2e%2e/outside",
    "\u2025/outside", "outside\0", "outside\n", "outside..json", "-rf", "~root", ".outside", "OUTSIDE", "a" * 65,
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """A service, and where its images and snapshots are."""

    service: Service
    place: Path

    def document(self, name: str) -> dict[str, Any]:
        """Return the document of a snapshot."""
        found: dict[str, Any] = json.loads((self.place / f"snapshots/{name}.json").read_text())
        return found

    def files(self) -> dict[str, bytes]:
        """Return every file of the directory."""
        return {str(path): path.read_bytes() for path in self.place.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def kept(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """A service with a secret in its environment, its settings and its bucket's keys, and a document outside."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        env = {**ENVIRONMENT, "SANDFORK_IMAGES_DIRECTORY": place}
        with running_service(tmp_path_factory.mktemp("kept"), config=SETTINGS, env=env) as service:
            made = Kept(service, Path(place))
            assert make(made, "inside")["status"] == "ready"
            (made.place / "outside.json").write_text(json.dumps({**made.document("inside"), "name": "outside"}))
            yield made


def make(kept: Kept, name: str, **fields: Any) -> dict[str, Any]:
    """Have a snapshot made, and return what is told of it in the end."""
    with kept.service.client as client:
        body = {"language": "python", "mem_mb": 64, "name": name, **fields}
        started = client.post("/api/v1/snapshots", json=body)
        assert started.status_code == 202, started.text
        while True:
            entry: dict[str, Any] = client.get(f"/api/v1/snapshots/{name}").json()
            if entry["status"] != "building":
                return entry


def attempts_on(client: httpx.Client, name: str) -> Iterator[httpx.Response]:
    """Name something in every way that a request can."""
    yield client.post("/api/v1/snapshots", json={"language": "python", "mem_mb": 64, "name": name})
    yield client.post("/api/v1/snapshots", json={"language": name, "mem_mb": 64})
    yield client.post("/api/v1/rootfs", json={"language": name})
    yield client.post("/v1/exec", json={"snapshot": name, "code": "print(1)"})
    yield client.post("/v1/exec", json={"language": name, "code": "print(1)"})
    yield client.post("/v1/exec", json={"template": name, "language": "python", "code": "print(1)"})
    yield client.post("/api/v1/execute", json={"snapshot": name, "language": "python", "code": "print(1)"})
    for kind in ("snapshots", "rootfs"):
        once = quote(name, safe="").replace(".", "%2E")  # clients resolve dots themselves
        for spelt in (once, quote(once, safe="")):
            yield client.get(f"/api/v1/{kind}/{spelt}")
            yield client.delete(f"/api/v1/{kind}/{spelt}")


@pytest.mark.parametrize("name", PATHS)
def test_a_name_that_is_a_path_names_nothing(name: str, kept: Kept) -> None:
    before = kept.files()
    with kept.service.client as client:
        for answer in attempts_on(client, name):
            assert answer.status_code in (400, 404, 405), (answer.request.url, answer.text)
            assert "root:" not in answer.text
            assert str(kept.place) not in answer.text
    assert kept.files() == before


def test_the_same_document_is_found_where_it_may_be(kept: Kept) -> None:
    """The control of the names: what lies outside is a snapshot, read and removed by its name where snapshots are."""
    (kept.place / "snapshots/outside.json").write_bytes((kept.place / "outside.json").read_bytes())
    with kept.service.client as client:
        assert client.post("/v1/exec", json={"snapshot": "outside", "code": "print(1)"}).json()["stdout"] == "1\n"
        assert client.delete("/api/v1/snapshots/outside").status_code == 200
        assert client.post("/v1/exec", json={"snapshot": "outside", "code": "print(1)"}).status_code == 404
    assert (kept.place / "outside.json").exists()


def test_a_snapshot_takes_the_place_of_no_language_and_no_template(kept: Kept) -> None:
    with kept.service.client as client:
        languages = client.get("/api/v1/languages").json()
        before = client.post("/v1/exec", json={"code": "print(1)"}).json()["limits"]
        for name in ("python", "bash"):
            assert make(kept, name)["status"] == "ready"
        assert client.get("/api/v1/languages").json() == languages
        for body in ({}, {"language": "python"}, {"template": "python"}):
            reply = client.post("/v1/exec", json={"code": "print(1)", **body}).json()
            assert (reply["stdout"], reply["limits"]) == ("1\n", before)
        shell = client.post("/v1/exec", json={"language": "bash", "code": "echo $BASH"}).json()
        assert shell["stdout"].endswith("bash\n"), shell
        # The control: who names the snapshot gets what it says, Python by the name of bash included.
        asked = client.post("/v1/exec", json={"snapshot": "bash", "code": "print(2)"}).json()
        assert (asked["stdout"], asked["limits"]["memory_bytes"]) == ("2\n", 64 << 20)
        for name in ("python", "bash"):
            client.delete(f"/api/v1/snapshots/{name}")


def test_a_snapshot_carries_nothing_of_who_made_it(kept: Kept) -> None:
    """What is kept is a document of what a template is made of. No program, no variable, no setting is in it."""
    marker = "authors-text-77c1"
    code = f"import os; os.environ['M'] = '{marker}'; print('{marker}')"
    kept.service.exec(code, env={"TOKEN": marker}, stdin=marker, files={"f": marker}, args=[marker])
    make(kept, "mine", vcpus=1)
    raw = (kept.place / "snapshots/mine.json").read_bytes()
    assert set(json.loads(raw)) == {
        "name", "language", "template", "mem_mb", "vcpus", "created", "revision", "toolchain", "preload", "pins",
        "image",
    }  # fmt: skip
    with kept.service.client as client:
        told = client.get("/api/v1/snapshots/mine").content + client.get("/api/v1/snapshots?remote=true").content
        look = "import os; print(dict(os.environ), open('/proc/self/environ').read(), os.listdir('.'))"
        ran = client.post("/v1/exec", json={"snapshot": "mine", "code": look}).content
        client.delete("/api/v1/snapshots/mine")
    for text in (raw, told, ran):
        assert SECRET.encode() not in text
        assert marker.encode() not in text
    control = Path(f"/proc/{kept.service.process.pid}/environ").read_bytes() + kept.service.log.read_bytes()
    assert SECRET.encode() in control, "there is no secret to be found"


LIES: dict[str, dict[str, Any]] = {
    "another name": {"name": "inside"},
    "another language": {"language": "../python"},
    "a template that is none": {"template": "../../etc/passwd"},
    "a file without end": {"pins": [{"path": "/dev/zero", "sha256": "0" * 64}]},
    "a file that nobody may read": {"pins": [{"path": "/etc/shadow", "sha256": "0" * 64}]},
    "no memory": {"mem_mb": 0},
    "more memory than a number holds": {"mem_mb": 1 << 70},
    "a terminal's orders": {"toolchain": "\x1b]0;x\x07"},
    "a pin that leads elsewhere": {"pins": [{"path": "../../etc/passwd", "sha256": "0" * 64}]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_hostile_document_is_a_refusal_and_holds_up_nobody(lie: str, kept: Kept) -> None:
    """As a bucket may have it. The control is the same document without the lie."""
    path = kept.place / "snapshots/lying.json"
    honest = {**kept.document("inside"), "name": "lying"}
    try:
        with kept.service.client as client:
            path.write_text(json.dumps(honest))
            assert client.post("/v1/exec", json={"snapshot": "lying", "code": "print(1)"}).json()["stdout"] == "1\n"
            path.write_text(json.dumps({**honest, **LIES[lie]}))
            refused = client.post("/v1/exec", json={"snapshot": "lying", "code": "print(1)"})
            assert (refused.status_code, refused.json()["code"]) == (409, "snapshot_conflict"), refused.text
            assert client.get("/api/v1/snapshots").status_code == 200
    finally:
        path.unlink()


def test_there_is_an_end_to_the_snapshots_of_all_callers(kept: Kept) -> None:
    for name in ("one", "two", "three"):
        make(kept, name)
    with kept.service.client as client:
        refused = client.post("/api/v1/snapshots", json={"language": "python", "mem_mb": 64, "name": "four"})
        assert (refused.status_code, len(list((kept.place / "snapshots").iterdir()))) == (403, 4), refused.text
        assert make(kept, "three")["revision"] == 2, "one that is there is made again"
        for name in ("one", "two", "three"):
            client.delete(f"/api/v1/snapshots/{name}")
