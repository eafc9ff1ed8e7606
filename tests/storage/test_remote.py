"""Blobs and documents in a bucket, against a real server: what is checked, what goes on after a break, what is told."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sandfork.errors import InvalidRequest, NotInBucket, RemoteFailed
from sandfork.images.bucket import Bucket, BucketSettings, Part
from sandfork.images.remote import MANIFESTS, SNAPSHOTS, Remote, blob_key, part_size
from tests.support.s3 import BUCKET, Cable, S3Server

PART = 5 << 20
#: Two whole parts and a bit.
CONTENT = hashlib.shake_128(b"an image").digest((2 * PART) + 12_345)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
NONE_SUCH = f"sha256:{'0' * 64}"


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    return path


def key_of(digest: str) -> str:
    return f"team/{blob_key(digest)}"


def test_a_blob_comes_back_as_it_went_and_lies_where_its_digest_says(
    server: S3Server, blob: Path, tmp_path: Path
) -> None:
    remote, told = server.remote(), list[float]()
    remote.push(blob, DIGEST, lambda percent, now: told.append(percent))
    listed = server.client().list_objects_v2(Bucket=BUCKET)["Contents"]
    assert [(each["Key"], each["Size"]) for each in listed] == [
        (f"team/blobs/sha256/{DIGEST.removeprefix('sha256:')}", len(CONTENT))
    ]
    assert told == [100 * done / len(CONTENT) for done in (0, PART, 2 * PART, len(CONTENT))]
    told.clear()
    remote.pull(DIGEST, len(CONTENT), tmp_path / "back", lambda percent, now: told.append(percent))
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert told == sorted(told)
    assert told[-1] == 100


def test_a_blob_that_is_there_is_not_sent_again(server: S3Server, line: Cable, blob: Path) -> None:
    server.remote().push(blob, DIGEST)
    S3Server(line.url).remote().push(blob, DIGEST)
    assert 0 < line.carried["up"] < 10_000


def test_a_blob_that_was_altered_there_is_sent_again(server: S3Server, blob: Path, tmp_path: Path) -> None:
    remote = server.remote()
    remote.push(blob, DIGEST)
    server.client().put_object(Bucket=BUCKET, Key=key_of(DIGEST), Body=b"\0" * len(CONTENT))
    remote.push(blob, DIGEST)
    remote.pull(DIGEST, len(CONTENT), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENT


def test_an_upload_that_broke_goes_on_with_the_parts_that_arrived(server: S3Server, line: Cable, blob: Path) -> None:
    remote = S3Server(line.url).remote(tries=1)
    line.break_after(up=PART + (PART // 2))
    with pytest.raises(RemoteFailed, match=r"connection broke|cannot be reached"):
        remote.push(blob, DIGEST)
    assert "Contents" not in server.client().list_objects_v2(Bucket=BUCKET)
    line.mend()
    remote.push(blob, DIGEST)
    # One part was there; what goes over the line is the other two.
    assert len(CONTENT) - PART <= line.carried["up"] < len(CONTENT) - PART + 20_000
    assert server.bucket().find(blob_key(DIGEST)) is not None
    assert "Uploads" not in server.client().list_multipart_uploads(Bucket=BUCKET)


def test_a_part_that_is_another_content_is_sent_again(server: S3Server, blob: Path, tmp_path: Path) -> None:
    bucket = server.bucket()
    upload = bucket.begin(blob_key(DIGEST))
    bucket.put_part(blob_key(DIGEST), upload, 1, b"\0" * PART)
    server.remote().push(blob, DIGEST)
    server.remote().pull(DIGEST, len(CONTENT), tmp_path / "back")


def test_a_download_that_broke_goes_on_where_it_was(server: S3Server, line: Cable, blob: Path, tmp_path: Path) -> None:
    server.remote().push(blob, DIGEST)
    remote, partial = S3Server(line.url).remote(tries=1), tmp_path / "partial"
    line.break_after(down=len(CONTENT) // 2)
    with pytest.raises(RemoteFailed, match="connection broke"):
        remote.pull(DIGEST, len(CONTENT), partial)
    kept = partial.stat().st_size
    assert 0 < kept < len(CONTENT)
    line.mend()
    remote.pull(DIGEST, len(CONTENT), partial)
    assert partial.read_bytes() == CONTENT
    assert len(CONTENT) - kept <= line.carried["down"] < len(CONTENT) - kept + 20_000


def test_a_transfer_ends_when_nobody_wants_it_and_can_go_on(server: S3Server, blob: Path, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def give_up(percent: float, now: str) -> None:
        if percent:
            raise Enough

    remote = server.remote()
    with pytest.raises(Enough):
        remote.push(blob, DIGEST, give_up)
    remote.push(blob, DIGEST)
    with pytest.raises(Enough):
        remote.pull(DIGEST, len(CONTENT), tmp_path / "partial", give_up)
    assert 0 < (tmp_path / "partial").stat().st_size < len(CONTENT)
    remote.pull(DIGEST, len(CONTENT), tmp_path / "partial")


def test_a_blob_that_is_not_its_digest_is_refused_and_does_not_stay(
    server: S3Server, blob: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "partial"
    server.remote().push(blob, DIGEST)
    server.client().put_object(Bucket=BUCKET, Key=key_of(DIGEST), Body=b"\0" + CONTENT[1:])
    with pytest.raises(RemoteFailed, match=f"{DIGEST} was altered there: push it again"):
        server.remote().pull(DIGEST, len(CONTENT), partial)
    assert not partial.exists()


def test_what_an_earlier_try_left_altered_is_told_and_does_not_stay(
    server: S3Server, blob: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "partial"
    server.remote().push(blob, DIGEST)
    partial.write_bytes(b"\0" + CONTENT[1:PART])
    with pytest.raises(RemoteFailed, match="or what an earlier try left here: try again"):
        server.remote().pull(DIGEST, len(CONTENT), partial)
    assert not partial.exists()
    server.remote().pull(DIGEST, len(CONTENT), partial)


def test_an_upload_whose_last_answer_was_lost_is_there(server: S3Server, blob: Path) -> None:
    class Deaf(Bucket):
        """Hears of the second try only, of which the server knows nothing any more."""

        def end(self, key: str, upload: str, parts: Sequence[Part]) -> None:
            super().end(key, upload, parts)
            super().end(key, upload, parts)

    bucket = Deaf(server.bucket(tries=1).settings)
    Remote(bucket, PART).push(blob, DIGEST)
    assert server.bucket().find(blob_key(DIGEST)) is not None


def test_what_a_manifest_tells_of_a_size_is_checked_before_anything_is_fetched(
    server: S3Server, blob: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "partial"
    server.remote().push(blob, DIGEST)
    with pytest.raises(RemoteFailed, match="not to be trusted"):
        server.remote().pull(DIGEST, len(CONTENT) - 1, partial)
    with pytest.raises(RemoteFailed, match="no such blob"):
        server.remote().pull(NONE_SUCH, 5, partial)
    assert not partial.exists()


def test_a_local_blob_that_was_altered_is_not_sent(server: S3Server, blob: Path) -> None:
    blob.write_bytes(CONTENT + b"more")
    with pytest.raises(RemoteFailed, match="was altered"):
        server.remote().push(blob, DIGEST)
    assert "Contents" not in server.client().list_objects_v2(Bucket=BUCKET)


def test_two_do_not_fetch_the_same_into_one_file(server: S3Server, blob: Path, tmp_path: Path) -> None:
    remote, partial = server.remote(), tmp_path / "partial"
    remote.push(blob, DIGEST)

    def fetch_too(percent: float, now: str) -> None:
        if percent:
            return
        with pytest.raises(RemoteFailed, match="another process"):
            server.remote().pull(DIGEST, len(CONTENT), partial)

    remote.pull(DIGEST, len(CONTENT), partial, fetch_too)
    assert partial.read_bytes() == CONTENT


def test_a_full_disk_is_told_and_nothing_stays_on_it(server: S3Server, blob: Path, tmp_path: Path) -> None:
    server.remote().push(blob, DIGEST)
    code = (
        "import sys; from pathlib import Path; from tests.support.s3 import S3Server\n"
        "import sandfork.images.remote as remote\n"
        "if sys.argv[4] == 'late': remote._refuse_a_disk_too_small = lambda *_: None\n"
        "try: S3Server(sys.argv[1]).remote().pull(sys.argv[2], int(sys.argv[3]), Path('full/partial'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(list(Path('full').iterdir()))\n"
    )
    (tmp_path / "full").mkdir()
    script = 'mount -t tmpfs -o size=2m none "$0/full" && cd "$0" && exec "$@"'
    for when in ("early", "late"):
        python = [sys.executable, "-c", code, server.url, DIGEST, str(len(CONTENT)), when]
        argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(tmp_path), *python]
        said = subprocess.run(argv, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
        first, last = said.stdout.splitlines()
        assert first.startswith("RemoteFailed the disk of full is full"), said.stdout
        assert last == "[]"


def test_a_transfer_of_a_hundred_megabytes_takes_the_memory_of_a_few_parts(server: S3Server, tmp_path: Path) -> None:
    code = (
        "import hashlib, resource, sys; from pathlib import Path; from tests.support.s3 import S3Server\n"
        "def both(size):\n"
        "    path, whole = Path(sys.argv[2], 'big'), hashlib.sha256()\n"
        "    with path.open('wb') as file:\n"
        "        for number in range(size // 1000000):\n"
        "            part = number.to_bytes(8, 'big') * 125000\n"
        "            whole.update(part); file.write(part)\n"
        "    digest = 'sha256:' + whole.hexdigest()\n"
        "    remote = S3Server(sys.argv[1]).remote(8 << 20)\n"
        "    remote.push(path, digest); path.unlink(); remote.pull(digest, size, path)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "print(both(1000000), both(100000000))\n"
    )
    argv = [sys.executable, "-c", code, server.url, str(tmp_path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    small, large = map(int, said.stdout.split())
    assert large - small < 48


def test_documents_are_listed_page_by_page_and_keys_that_are_none_are_passed_over(server: S3Server) -> None:
    remote, client = server.remote(page=10), server.client()
    for number in range(25):
        client.put_object(Bucket=BUCKET, Key=f"team/manifests/image{number:04}.json", Body=b"{}")
    for stray in (
        "team/manifests/..%2f.json",
        "team/manifests/a/b.json",
        "team/manifests/UPPER.json",
        "manifests/x.json",
    ):
        client.put_object(Bucket=BUCKET, Key=stray, Body=b"{}")
    remote.publish(SNAPSHOTS, "warm", b'{"name": "warm"}')
    assert remote.names(MANIFESTS) == [f"image{number:04}" for number in range(25)]
    assert remote.names(SNAPSHOTS) == ["warm"]
    assert remote.read(SNAPSHOTS, "warm") == b'{"name": "warm"}'
    with pytest.raises(NotInBucket, match="has no snapshot 'cold'"):
        remote.read(SNAPSHOTS, "cold")
    with pytest.raises(NotInBucket, match="has no image 'cold'"):
        remote.read(MANIFESTS, "cold")


def test_a_document_that_is_too_large_is_not_read(server: S3Server) -> None:
    server.client().put_object(Bucket=BUCKET, Key="team/manifests/bomb.json", Body=b" " * ((4 << 20) + 1))
    with pytest.raises(RemoteFailed, match="is larger than"):
        server.remote().read(MANIFESTS, "bomb")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "UPPER", ".hidden", "a" * 65, "a\n", "a\0"])
def test_a_name_that_could_be_a_path_is_refused(server: S3Server, name: str) -> None:
    with pytest.raises(InvalidRequest):
        server.remote().read(MANIFESTS, name)
    with pytest.raises(InvalidRequest):
        server.remote().publish(MANIFESTS, name, b"{}")


@pytest.mark.parametrize("digest", ["", "sha256:" + "A" * 64, "sha256:../../x", "md5:" + "0" * 64, NONE_SUCH + "\n"])
def test_a_digest_that_could_be_a_path_is_refused(digest: str) -> None:
    with pytest.raises(RemoteFailed, match="is no digest"):
        blob_key(digest)


def test_no_upload_has_more_parts_than_a_server_takes() -> None:
    for size in (1, 80 << 30, 5 << 40):
        assert -(-size // part_size(size)) <= 10_000


def test_wrong_keys_are_told_apart_by_a_server_that_checks_signatures(
    strict_server: S3Server, tmp_path: Path, blob: Path
) -> None:
    right = strict_server.remote()
    right.push(blob, DIGEST)
    right.publish(MANIFESTS, "python", b"{}")
    right.pull(DIGEST, len(CONTENT), tmp_path / "back")
    secret = strict_server.remote(secret_key="wrong")
    nobody = strict_server.remote(access_key="AKIAIOSFODNN7EXAMPLE", secret_key="wrong")
    with pytest.raises(RemoteFailed, match="refuses the secret key"):
        secret.names(MANIFESTS)
    with pytest.raises(RemoteFailed, match="does not know the access key"):
        nobody.names(MANIFESTS)
    for wrong in (secret, nobody):
        with pytest.raises(RemoteFailed, match=r"\((SignatureDoesNotMatch|InvalidAccessKeyId)\)"):
            wrong.push(blob, DIGEST)  # begins with a HEAD, whose answer has no reason
        with pytest.raises(RemoteFailed, match="key"):
            wrong.read(MANIFESTS, "python")
        with pytest.raises(RemoteFailed, match="key"):
            wrong.publish(MANIFESTS, "python", b"[]")
    assert right.read(MANIFESTS, "python") == b"{}"


def test_a_bucket_that_is_not_there_is_told(server: S3Server, tmp_path: Path, blob: Path) -> None:
    remote = server.remote(bucket="nowhere")
    for attempt in (
        lambda: remote.names(MANIFESTS),
        lambda: remote.read(MANIFESTS, "python"),
        lambda: remote.push(blob, DIGEST),
        lambda: remote.pull(DIGEST, 5, tmp_path / "partial"),
        lambda: remote.publish(MANIFESTS, "python", b"{}"),
    ):
        with pytest.raises(RemoteFailed, match=r"bucket 'nowhere' at http://.* does not exist: make it"):
            attempt()


def test_a_server_that_does_not_answer_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(RemoteFailed, match=r"cannot be reached: is remote\.endpoint right"):
        S3Server(url).remote(tries=1).names(MANIFESTS)


def test_a_server_that_takes_connections_and_says_nothing_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RemoteFailed, match=r"no answer within 0\.1 s: does it answer\? Else see remote\.read_s"):
            S3Server(url).remote(tries=1, read_s=0.1).names(MANIFESTS)


class Website(BaseHTTPRequestHandler):
    """Answers everything, and is no S3 server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else b"<html>welcome</html>")

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815  # as they are called there

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as it is called there
        """Say nothing."""


def test_what_is_no_s3_server_is_told(blob: Path, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Website) as website:
        threading.Thread(target=website.serve_forever).start()
        try:
            remote = S3Server(f"http://127.0.0.1:{website.server_port}").remote(tries=1)
            for attempt in (
                lambda: remote.names(MANIFESTS),
                lambda: remote.push(blob, DIGEST),
                lambda: remote.pull(DIGEST, 5, tmp_path / "partial"),
                lambda: remote.publish(MANIFESTS, "python", b"{}"),
            ):
                with pytest.raises(RemoteFailed, match=r"no S3 server: is remote\.endpoint right"):
                    attempt()
        finally:
            website.shutdown()


def test_a_server_without_tls_that_is_asked_for_it_is_told_in_one_line(server: S3Server) -> None:
    tls = S3Server(server.url.replace("http:", "https:"))
    with pytest.raises(RemoteFailed, match=r"no TLS: should remote\.endpoint begin with http://"):
        tls.remote(tries=1).names(MANIFESTS)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"bucket": "a/b"}, r"^'a/b' is no name of a bucket: see remote\.bucket$"),
        ({"access_key": ""}, r"^remote\.access_key is empty: "),
        ({"secret_key": ""}, r"^remote\.secret_key is empty: "),
    ],
)
def test_settings_that_cannot_be_are_told_by_name(server: S3Server, wrong: dict[str, str], told: str) -> None:
    with pytest.raises(RemoteFailed, match=told):
        server.remote(**wrong).names(MANIFESTS)


def test_missing_credentials_are_told(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(RemoteFailed, match=r"no credentials: set remote\.access_key"):
        server.remote(access_key="", secret_key="").names(MANIFESTS)


def test_an_endpoint_that_is_no_address_is_told() -> None:
    with pytest.raises(RemoteFailed, match=r"remote\.endpoint"):
        Remote(Bucket(BucketSettings("images", endpoint="not an address", region="x"))).names(MANIFESTS)
