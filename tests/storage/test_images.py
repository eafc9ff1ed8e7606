"""Whole images to a bucket and back, between two stores; and manifests that lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandfork.errors import ImageCorrupt, ImageError
from sandfork.images.archive import Bounds
from sandfork.images.making import import_directory
from sandfork.images.remote import MANIFESTS
from sandfork.images.state import Kind, RootfsState
from sandfork.images.store import Store
from sandfork.serve_remote import pull_image, push_image, remote_states
from tests.support.s3 import S3Server


def test_an_image_goes_to_a_bucket_and_comes_back_and_a_manifest_that_lies_is_refused(
    server: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "tree/usr/bin").mkdir(parents=True)
    (tmp_path / "tree/usr/bin/tool").write_bytes(b"#!/bin/sh\n" * 1000)
    here, there, remote = Store(tmp_path / "here"), Store(tmp_path / "there"), server.remote()
    made = import_directory(here, "tools", ["bash"], tmp_path / "tree", Bounds(), lambda percent, now: None)
    push_image(here, remote, "tools")
    (state,) = remote_states(remote, Kind.ROOTFS)
    assert isinstance(state, RootfsState)
    assert (state.name, state.languages, state.size_bytes, state.digest) == ("tools", ("bash",), made.size, made.digest)
    assert pull_image(there, remote, "tools") == made
    assert (there.tree(made) / "usr/bin/tool").read_bytes() == b"#!/bin/sh\n" * 1000
    assert list((tmp_path / "there/incoming").iterdir()) == []
    honest = remote.read(MANIFESTS, "tools")
    remote.publish(MANIFESTS, "other", honest)
    remote.publish(MANIFESTS, "noise", b"[" * 10_000)
    for name in ("other", "noise"):
        with pytest.raises(ImageCorrupt):
            pull_image(there, remote, name)
    remote.publish(MANIFESTS, "tools", honest.replace(f'"size": {made.size}'.encode(), b'"size": 1'))
    with pytest.raises(ImageError, match="not to be trusted"):
        pull_image(there, remote, "tools")
    assert there.get("tools") == made
