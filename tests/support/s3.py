"""A real S3 server in a process of its own, one that checks signatures, and a connection to it that can be cut."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import boto3

from sandfork.images.bucket import Bucket, BucketSettings
from sandfork.images.remote import Remote

BUCKET = "images"
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
#: Requests that make the bucket and a user, after which a strict server checks every signature.
UNCHECKED = "4"


@dataclass(frozen=True)
class S3Server:
    """Where it answers, and keys that it takes."""

    url: str
    access_key: str = "anybody"
    secret_key: str = "anything"

    def client(self, service: str = "s3") -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def bucket(self, **changes: Any) -> Bucket:
        settings = {
            "bucket": BUCKET,
            "endpoint": self.url,
            "region": "us-east-1",
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "prefix": "/team/",
        }
        return Bucket(BucketSettings(**{**settings, **changes}))

    def remote(self, part_bytes: int = 5 << 20, **changes: Any) -> Remote:
        return Remote(self.bucket(**changes), part_bytes)


@contextmanager
def s3_server(*, strict: bool = False) -> Iterator[S3Server]:
    """Run a server with an empty bucket; a strict one takes the keys of one user and checks every signature."""
    environment = {**os.environ, **({"INITIAL_NO_AUTH_ACTION_COUNT": UNCHECKED} if strict else {})}
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            url = next(match[0] for line in process.stdout if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
            # What it logs of every request is read, so that it never waits for somebody to.
            reader = threading.Thread(target=process.stdout.read, daemon=True)
            reader.start()
            server = S3Server(url)
            server.client().create_bucket(Bucket=BUCKET)
            yield _with_a_user(server) if strict else server
        finally:
            process.kill()


def _with_a_user(server: S3Server) -> S3Server:
    iam = server.client("iam")
    iam.create_user(UserName="sandfork")
    key = iam.create_access_key(UserName="sandfork")["AccessKey"]
    iam.put_user_policy(UserName="sandfork", PolicyName="all", PolicyDocument=json.dumps(EVERYTHING))
    return S3Server(server.url, key["AccessKeyId"], key["SecretAccessKey"])


class Cable:
    """A way to a server that breaks after so many bytes in one direction, and stays broken until it is mended."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._left: dict[str, int | None] = {"up": None, "down": None}
        self._broken = False
        self._lock = threading.Lock()
        self.carried = {"up": 0, "down": 0}
        threading.Thread(target=self._accept, daemon=True).start()

    def break_after(self, *, up: int | None = None, down: int | None = None) -> None:
        self._left = {"up": up, "down": down}

    def mend(self) -> None:
        with self._lock:
            self._left, self._broken, self.carried = {"up": None, "down": None}, False, {"up": 0, "down": 0}

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._broken:
                    client.close()
                    continue
                server = socket.create_connection(self._target)
                for direction, source, sink in (("up", client, server), ("down", server, client)):
                    threading.Thread(target=self._carry, args=(direction, source, sink), daemon=True).start()

    def _carry(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if not self._passes(direction, len(content)):
                    break
                sink.sendall(content)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def _passes(self, direction: str, count: int) -> bool:
        with self._lock:
            left = self._left[direction]
            self.carried[direction] += count
            if left is not None:
                self._left[direction] = left - count
                self._broken = self._broken or left < count
            return not self._broken


@contextmanager
def cable(url: str) -> Iterator[Cable]:
    made = Cable(url)
    try:
        yield made
    finally:
        made.close()
