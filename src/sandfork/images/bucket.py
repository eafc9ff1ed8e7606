"""A bucket of any S3-compatible server, and what its refusals mean to whoever runs the service.

Blocking: whoever has an event loop calls from a thread. One request at a time, each with a deadline of its own, so that
a `Bucket` takes the memory of one part. boto3 is imported with the first bucket: a service that has none does without.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sandfork.errors import NotInBucket, RemoteFailed

CHUNK_BYTES = 1 << 20
_WRONG_KEYS = {
    "InvalidAccessKeyId": "does not know the access key",
    "SignatureDoesNotMatch": "refuses the secret key",
    "InvalidClientTokenId": "does not know the access key",
    "ExpiredToken": "says that the credentials have expired",
    "TokenRefreshRequired": "says that the credentials have expired",
    "RequestTimeTooSkewed": "says that this machine's clock is wrong",
    "AccessDenied": "does not let these credentials do that",
    "AccountProblem": "does not let these credentials do that",
    "403": "refuses the credentials, or does not let them do that",
}
_NOTHING_THERE = {"404", "NoSuchKey", "NotFound"}
#: An answer without words, as to a HEAD.
_UNEXPLAINED = "403"
#: What every list of objects has some of; what else answers has none.
_OF_A_LIST = {"Name", "KeyCount", "MaxKeys", "IsTruncated"}
#: How long a server may be making one object of many parts: some copy all of them before they answer.
JOIN_S = 600.0


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """Where a bucket is, and as whom to use it; "" leaves it to the AWS configuration of this machine.

    `connect_s` and `read_s` are the deadlines of one request, `tries` how often one that failed for no fault of its own
    is made in all, `page` how many objects one answer lists.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    access_key: str = ""
    secret_key: str = ""
    connect_s: float = 5.0
    read_s: float = 30.0
    tries: int = 3
    page: int = 1000


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the server lists it; `tag` is its ETag without quotes."""

    key: str
    size_bytes: int
    tag: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an upload that the server has."""

    number: int
    size_bytes: int
    tag: str


class Bucket:
    """Reads and writes objects. Keys are without the configured prefix. Every method *Raises* RemoteFailed."""

    def __init__(self, settings: BucketSettings) -> None:
        self.settings = settings
        self._prefix = f"{settings.prefix.strip('/')}/" if settings.prefix.strip("/") else ""
        self._made: Any = None
        self._patient = replace(settings, read_s=max(settings.read_s, JOIN_S), tries=1)

    @property
    def place(self) -> str:
        """How the bucket is called in messages."""
        at = f" at {self.settings.endpoint}" if self.settings.endpoint else ""
        return f"bucket {self.settings.bucket!r}{at}"

    def address(self, key: str) -> str:
        """Return where an object is: s3://bucket/prefix/key."""
        return f"s3://{self.settings.bucket}/{self._prefix}{key}"

    def entries(self, prefix: str) -> Iterator[Stored]:
        """Yield the objects whose keys begin so, page by page."""
        with self._told("", missing="NoSuchBucket"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.settings.bucket,
                Prefix=self._prefix + prefix,
                PaginationConfig={"PageSize": self.settings.page},
            )
            for page in pages:
                if not _OF_A_LIST & page.keys():
                    raise self._no_s3()
                for each in page.get("Contents", ()):
                    tag = each.get("ETag", "").strip('"')
                    yield Stored(each["Key"].removeprefix(self._prefix), int(each["Size"]), tag)

    def find(self, key: str) -> Stored | None:
        """Return what is known of an object, None when it is not there."""
        try:
            with self._told(key):
                head = self._client.head_object(**self._at(key))
                return Stored(key, int(head["ContentLength"]), head["ETag"].strip('"'))
        except NotInBucket:
            self.check()
            return None
        except _Unexplained:
            self.check()
            raise

    def check(self) -> None:
        """Find the bucket. *Raises* RemoteFailed with a reason, which the answer to a HEAD of an object has not."""
        next(self.entries(""), None)

    def read(self, key: str, max_bytes: int) -> bytes:
        """Return a small object. *Raises* NotInBucket, RemoteFailed when it is larger than `max_bytes`."""
        try:
            with self._told(key):
                body = self._client.get_object(**self._at(key))["Body"]
                with body:
                    content: bytes = body.read(max_bytes + 1)
        except NotInBucket:
            self.check()
            raise
        if len(content) > max_bytes:
            raise RemoteFailed(f"{self.place}: {key} is larger than {max_bytes} bytes, which no manifest is")
        return content

    def stream(self, key: str, start: int) -> Iterator[bytes]:
        """Yield an object from byte `start` on, in chunks. *Raises* NotInBucket."""
        with self._told(key):
            wanted = {"Range": f"bytes={start}-"} if start else {}
            answer = self._client.get_object(**self._at(key), **wanted)
            if start and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
                raise RemoteFailed(f"{self.place}: the server does not send parts of objects")
            with answer["Body"] as body:
                while chunk := body.read(CHUNK_BYTES):
                    yield chunk

    def write(self, key: str, content: bytes) -> None:
        """Write a small object, in one go."""
        with self._told(key):
            answer = self._client.put_object(
                **self._at(key), Body=content, ContentMD5=_md5(content), ContentType="application/json"
            )
            if not answer.get("ETag"):
                raise self._no_s3()

    def begin(self, key: str) -> str:
        """Begin an upload in parts; return its id."""
        with self._told(key):
            made = self._client.create_multipart_upload(**self._at(key), ContentType="application/octet-stream")
            return str(made["UploadId"])

    def begun(self, key: str) -> str | None:
        """Return the id of the newest upload of an object that was begun and not ended, None when there is none."""
        with self._told(key):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.settings.bucket, Prefix=self._prefix + key
            )
            uploads = [each for page in pages for each in page.get("Uploads", ()) if each["Key"] == self._prefix + key]
        return str(max(uploads, key=lambda each: each["Initiated"])["UploadId"]) if uploads else None

    def parts(self, key: str, upload: str) -> dict[int, Part]:
        """Return the parts of an upload that are there, by number."""
        with self._told(key):
            pages = self._client.get_paginator("list_parts").paginate(**self._at(key), UploadId=upload)
            found = [each for page in pages for each in page.get("Parts", ())]
        return {each["PartNumber"]: Part(each["PartNumber"], each["Size"], each["ETag"].strip('"')) for each in found}

    def put_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
        """Upload a part; the server checks that it is what was sent."""
        with self._told(key):
            answer = self._client.upload_part(
                **self._at(key), UploadId=upload, PartNumber=number, Body=content, ContentMD5=_md5(content)
            )
            return Part(number, len(content), answer["ETag"].strip('"'))

    def end(self, key: str, upload: str, parts: Sequence[Part]) -> None:
        """Make the object of its parts: it is there from now on, whole.

        Not tried twice: a server that was only slow knows the upload no more when it is asked again.
        """
        listed = [{"PartNumber": part.number, "ETag": f'"{part.tag}"'} for part in parts]
        with self._told(key):
            client = _make_client(self._patient)
            client.complete_multipart_upload(**self._at(key), UploadId=upload, MultipartUpload={"Parts": listed})

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.settings.bucket, "Key": self._prefix + key}

    @property
    def _client(self) -> Any:
        if self._made is None:
            self._made = _make_client(self.settings)
        return self._made

    @contextmanager
    def _told(self, key: str, missing: str = "") -> Iterator[None]:
        """Turn what boto3 raises into words. *Raises* RemoteFailed, NotInBucket."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            raise self._refused(missing if missing and code in _NOTHING_THERE else code, key, error) from None
        except BotoCoreError as error:
            raise RemoteFailed(self._failed(error)) from None
        except (KeyError, ResponseParserError):
            raise self._no_s3() from None
        except (HTTPError, ValueError):
            raise RemoteFailed(self._broken) from None

    def _refused(self, code: str, key: str, error: Exception) -> RemoteFailed | NotInBucket:
        if code == "NoSuchBucket":
            return RemoteFailed(f"{self.place} does not exist: make it, or name another as remote.bucket")
        if code in _NOTHING_THERE:
            return NotInBucket(f"{self.place} has no {key}")
        if code in _WRONG_KEYS:
            kind = _Unexplained if code == _UNEXPLAINED else RemoteFailed
            return kind(f"{self.place}: the server {_WRONG_KEYS[code]} ({code}); see remote.access_key")
        if code == "NoSuchUpload":
            return RemoteFailed(f"{self.place}: the server knows the upload no more, which somebody ended; try again")
        return RemoteFailed(f"{self.place}: {_line(error)}")

    def _no_s3(self) -> RemoteFailed:
        return RemoteFailed(f"{self.place}: what answers there is no S3 server: is remote.endpoint right?")

    @property
    def _broken(self) -> str:
        return f"{self.place}: the connection broke; try again: a transfer goes on where it was"

    def _failed(self, error: Exception) -> str:
        kind = type(error).__name__
        if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
            return (
                f"{self.place}: there are no credentials: set remote.access_key and remote.secret_key, "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what else the AWS tools read"
            )
        if kind in ("EndpointConnectionError", "ConnectTimeoutError"):
            return f"{self.place} cannot be reached: is remote.endpoint right, and does it answer?"
        if kind == "NoRegionError":
            return f"{self.place}: no region is set: set remote.region"
        if kind == "ReadTimeoutError":
            return f"{self.place}: no answer within {self.settings.read_s:g} s: does it answer? Else see remote.read_s"
        if kind == "SSLError":
            why = getattr(error, "kwargs", {}).get("error", error)
            return (
                f"{self.place}: no TLS: should remote.endpoint begin with http://, or a certificate be known? ({why})"
            )
        if kind == "ParamValidationError" and "bucket name" in str(error):
            return f"{self.settings.bucket!r} is no name of a bucket: see remote.bucket"
        if kind in ("ConnectionClosedError", "ResponseStreamingError", "IncompleteReadError"):
            return self._broken
        return f"{self.place}: {_line(error)}"


class _Unexplained(RemoteFailed):
    """A refusal without a reason."""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _make_client(settings: BucketSettings) -> Any:
    """Return a client. *Raises* RemoteFailed for settings that boto3 cannot use."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    if bool(settings.access_key) != bool(settings.secret_key):
        lacking = "secret_key" if settings.access_key else "access_key"
        raise RemoteFailed(f"remote.{lacking} is empty: an access key and its secret key are set together")
    config = Config(
        connect_timeout=settings.connect_s,
        read_timeout=settings.read_s,
        retries={"mode": "standard", "total_max_attempts": settings.tries},
        signature_version="s3v4",
        s3={"addressing_style": "path" if settings.endpoint else "auto"},
        # Of S3-compatible servers few know the newer checksums; every body that we send has its MD5.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint or None,
            region_name=settings.region or None,
            aws_access_key_id=settings.access_key or None,
            aws_secret_access_key=settings.secret_key or None,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise RemoteFailed(f"remote.endpoint, remote.region: {error}") from None


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
