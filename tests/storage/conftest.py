"""The S3 servers of these tests; one of each serves all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.s3 import BUCKET, Cable, S3Server, cable, s3_server


@pytest.fixture(scope="session")
def one_server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def server(one_server: S3Server) -> Iterator[S3Server]:
    """A server whose bucket is empty."""
    yield one_server
    client = one_server.client()
    for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for each in page.get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=each["Key"])


@pytest.fixture(scope="session")
def strict_server() -> Iterator[S3Server]:
    with s3_server(strict=True) as server:
        yield server


@pytest.fixture
def line(server: S3Server) -> Iterator[Cable]:
    with cable(server.url) as made:
        yield made
