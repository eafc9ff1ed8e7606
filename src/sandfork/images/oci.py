"""Read what other tools export: an OCI layout or a docker-save archive, each a directory or a tar. Nothing is trusted.

Layers are applied one by one to a directory of ours; tars are unpacked with the same care as layers are. What the
documents name is looked up by plain names inside the export, and everything that has a digest is checked against it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import zstandard

from sandfork.errors import ArchiveRefused
from sandfork.images.archive import Bounds, ByteStream, plain_path
from sandfork.images.naming import hex_of, is_digest
from sandfork.images.progress import Tell
from sandfork.images.tree import tree_writer

_DOCUMENT_MAX_BYTES = 4 << 20
_LAYERS_MAX = 256
_INDEXES_MAX = 4
_CHUNK = 1 << 20
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Hashed:
    """Reads a layer and sums it up."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(_CHUNK if size < 0 else min(size, _CHUNK))
        self._sha256.update(data)
        return data

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


class _Gunzip:
    """Decompresses gzip, members one after the other, never more at a time than is asked for."""

    def __init__(self, file: ByteStream) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(31)
        self._input = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if not self._input:
                self._input = self._file.read(_CHUNK)
                if not self._input:
                    if not self._inflate.eof:
                        raise ArchiveRefused("a layer's gzip stream ends before its end: it is truncated")
                    return b""
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(31)
            try:
                data = self._inflate.decompress(self._input, size)
            except zlib.error as error:
                raise ArchiveRefused(f"a layer's gzip stream is damaged: {error}") from None
            self._input = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if data:
                return data


def import_oci(export: Path, work: Path, tree: Path, bounds: Bounds, tell: Tell) -> Sequence[str]:
    """Make the root file system of an export at `tree`, an empty directory; `work` is for what a tar has in it.

    Return the files of it that had set-uid or set-gid bits.

    *Raises* ArchiveRefused, OSError.
    """
    directory = export
    if not export.is_dir():
        tell(1.0, "reading the archive")
        directory = work / "export"
        directory.mkdir()
        with export.open("rb") as file, tree_writer(str(directory)) as writer:
            writer.extract(_decompressed(file), bounds)
    layers = _layers(directory)
    if not 0 < len(layers) <= _LAYERS_MAX:
        raise ArchiveRefused(f"the image has {len(layers)} layers; it may have 1 to {_LAYERS_MAX}")
    with tree_writer(str(tree)) as writer:
        for number, (path, digest) in enumerate(layers):
            tell(10 + 60 * number / len(layers), f"layer {number + 1} of {len(layers)}")
            left = Bounds(bounds.max_bytes - writer.bytes_written, bounds.max_members)
            with _opened(directory, path) as file:
                hashed = _Hashed(file)
                writer.extract(_decompressed(hashed), left, whiteouts=True)
                while hashed.read():
                    pass
                if digest and hashed.hexdigest() != digest:
                    raise ArchiveRefused(f"layer {path} has another digest than the image's manifest says")
        return sorted(os.fsdecode(each) for each in writer.set_id if os.path.lexists(tree / os.fsdecode(each)))


def _layers(directory: Path) -> Sequence[tuple[str, str]]:
    """Return (path in the export, hexadecimal sha256 or "") of each layer, the lowest first."""
    if (directory / "index.json").exists():
        return _oci_layers(directory)
    if (directory / "manifest.json").exists():
        manifests = _document(directory, "manifest.json")
        if not isinstance(manifests, list) or len(manifests) != 1 or not isinstance(manifests[0], dict):
            raise ArchiveRefused("the archive has not exactly one image: save one by its name")
        layers = manifests[0].get("Layers")
        if not isinstance(layers, list) or not all(isinstance(each, str) for each in layers):
            raise ArchiveRefused("manifest.json names no layers")
        return [(each, "") for each in layers]
    raise ArchiveRefused("this is neither an OCI layout (index.json) nor made by docker save (manifest.json)")


def _oci_layers(directory: Path) -> Sequence[tuple[str, str]]:
    document = _document(directory, "index.json")
    for _ in range(_INDEXES_MAX):
        if "manifests" not in document:
            layers = document.get("layers")
            if not isinstance(layers, list):
                raise ArchiveRefused("the image's manifest names no layers")
            return [_blob_path(each) for each in layers]
        path, digest = _blob_path(_choose(document["manifests"]))
        document = _document(directory, path, digest)
    raise ArchiveRefused("the layout has an index in an index in an index")


def _choose(manifests: object) -> object:
    """Return the one image of an index, or the one for this machine."""
    if not isinstance(manifests, list) or not manifests:
        raise ArchiveRefused("the layout has no image")
    own = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    fitting = [m for m in manifests if isinstance(m, dict) and (m.get("platform") or {}).get("architecture") == own]
    if len(manifests) == 1:
        return manifests[0]
    if len(fitting) != 1:
        raise ArchiveRefused(f"the layout has {len(manifests)} images and not exactly one for {own}: export one")
    return fitting[0]


def _blob_path(descriptor: object) -> tuple[str, str]:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not is_digest(digest):
        raise ArchiveRefused("the layout names content by something that is no sha256 digest")
    return f"blobs/sha256/{hex_of(digest)}", hex_of(digest)


def _document(directory: Path, path: str, digest: str = "") -> Any:
    with _opened(directory, path) as file:
        raw = file.read(_DOCUMENT_MAX_BYTES + 1)
    if len(raw) > _DOCUMENT_MAX_BYTES or (digest and hashlib.sha256(raw).hexdigest() != digest):
        raise ArchiveRefused(f"{path} is too large, or is not what its digest says")
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveRefused(f"{path} is no JSON document: {error}") from None
    if path != "manifest.json" and not isinstance(document, dict):
        raise ArchiveRefused(f"{path} is no JSON object")
    return document


def _opened(directory: Path, name: str) -> IO[bytes]:
    """Open a regular file of an export, through no link but one to a sibling layer, as docker save makes them."""
    parts = plain_path(os.fsencode(name))
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (0 if last else os.O_DIRECTORY)
        try:
            below = os.open(part, flags, dir_fd=fd)
        except OSError as error:
            raise ArchiveRefused(f"the image's {name[:200]!r} is missing or is a link: {error.strerror}") from None
        finally:
            os.close(fd)
        fd = below
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ArchiveRefused(f"the image's {name[:200]!r} is no file")
    return open(fd, "rb")


class _Rewound:
    """A stream whose first bytes were read to see what they are."""

    def __init__(self, head: bytes, rest: ByteStream) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            data, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
            return data
        return self._rest.read(_CHUNK if size < 0 else size)


class _Unzstd:
    """Decompresses zstd, frames one after the other."""

    def __init__(self, file: ByteStream) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._reader = decompressor.stream_reader(file, read_across_frames=True, closefd=False)  # type: ignore[arg-type]

    def read(self, size: int, /) -> bytes:
        try:
            return self._reader.read(size)
        except zstandard.ZstdError as error:
            raise ArchiveRefused(f"a layer's zstd stream is damaged: {error}") from None


def _decompressed(file: ByteStream) -> ByteStream:
    """Return the tar in a file that is compressed with gzip or zstd, or not at all."""
    head = file.read(4)
    whole = _Rewound(head, file)
    if head.startswith(b"\x1f\x8b"):
        return _Gunzip(whole)
    if head == b"\x28\xb5\x2f\xfd":
        return _Unzstd(whole)
    return whole
