"""What is known of an image: its manifest, a JSON document of its own beside the content that it names by digest."""

from __future__ import annotations

from typing import Literal

import msgspec

from sandfork.errors import ImageCorrupt, InvalidRequest
from sandfork.images.naming import check_name, hex_of

SET_ID_MAX = 100


class Package(msgspec.Struct, frozen=True):
    """A package of the distribution that is in an image, pinned."""

    name: str
    version: str
    architecture: str


class Source(msgspec.Struct, frozen=True):
    """How an image was made.

    `origin` is where from: the archives of a build, one line each; the name of what was imported; the key of the
    toolchain that filled a warm cache. `packages` are those that were asked for, which the image's own list has with
    all that they need.
    """

    kind: Literal["build", "oci", "directory", "warm"]
    suite: str = ""
    packages: tuple[str, ...] = ()
    origin: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True):
    """One image.

    `digest` ("sha256:" and 64 hexadecimal digits) and `size` (bytes) are of the blob, a tar compressed with zstd;
    `tree_bytes` is what its files hold. `created` is RFC 3339 in UTC. `sbom` is the digest of the bill of materials, an
    SPDX 2.3 document in JSON, or empty. `languages` are the names of those that can run on it. `set_id` names files
    that had set-uid or set-gid bits where they came from, the first SET_ID_MAX of them: an image has none.
    """

    name: str
    languages: tuple[str, ...]
    digest: str
    size: int
    tree_bytes: int
    created: str
    source: Source
    packages: tuple[Package, ...] = ()
    sbom: str = ""
    set_id: tuple[str, ...] = ()


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the JSON document."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(raw: bytes) -> Manifest:
    """Return the manifest of a JSON document. *Raises* ImageCorrupt for anything else."""
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
        check_name(manifest.name)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidRequest, RecursionError) as error:
        raise ImageCorrupt(f"this is no manifest of an image: {error}") from None
    hex_of(manifest.digest)
    if manifest.sbom:
        hex_of(manifest.sbom)
    if not all(text.isprintable() for text in (manifest.created, *manifest.languages, *manifest.set_id)):
        raise ImageCorrupt("this is no manifest of an image: it has control characters, and would be shown")
    if min(manifest.size, manifest.tree_bytes) < 0:
        raise ImageCorrupt("this is no manifest of an image: a size is negative")
    return manifest
