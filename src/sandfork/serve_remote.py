"""The bucket of the settings, and moving images and snapshots between it and this machine."""

from __future__ import annotations

from collections.abc import Sequence

from sandfork.config import Config
from sandfork.errors import ImageCorrupt, NotSupported, SnapshotConflict, StoreUnusable
from sandfork.images.bucket import Bucket, BucketSettings
from sandfork.images.manifest import Manifest, decode_manifest, encode_manifest
from sandfork.images.naming import hex_of
from sandfork.images.progress import Tell, tell_nobody
from sandfork.images.remote import MANIFESTS, SNAPSHOTS, Remote
from sandfork.images.snapshots import Snapshot, SnapshotStore, decode_snapshot, encode_snapshot
from sandfork.images.state import LOCAL, REMOTE, ImageState, Kind, Making, RootfsState, SnapshotState, Status
from sandfork.images.store import Store

MAX_BILL_BYTES = 64 << 20
#: How much of a pull the transfer is, in percent; the rest is unpacking.
_FETCHED = 80.0
_HURRIED_S = 4.0
NO_BUCKET = "there is no bucket for images: name one as remote.bucket, with remote.endpoint where it is not Amazon's"


def open_remote(config: Config, *, hurried: bool = False) -> Remote:
    """Return the configured bucket, not tried yet. *Raises* NotSupported when none is configured.

    `hurried` for a client that waits: a server that does not answer is told in seconds, however patient transfers are.
    """
    remote = config.remote
    if not remote.bucket:
        raise NotSupported(NO_BUCKET)
    return Remote(
        Bucket(
            BucketSettings(
                bucket=remote.bucket,
                prefix=remote.prefix,
                endpoint=remote.endpoint,
                region=remote.region,
                access_key=remote.access_key,
                secret_key=remote.secret_key,
                connect_s=min(remote.connect_s, _HURRIED_S) if hurried else remote.connect_s,
                read_s=min(remote.read_s, _HURRIED_S) if hurried else remote.read_s,
                tries=min(remote.tries, 2) if hurried else remote.tries,
            )
        ),
        remote.part_bytes,
    )


def remote_states(remote: Remote, kind: Kind) -> Sequence[ImageState]:
    """Return what the bucket has; a document that is none is told as failed, with the reason. Blocking."""
    if kind is Kind.SNAPSHOT:
        return [_remote_snapshot(remote, name) for name in remote.names(SNAPSHOTS)]
    return [_remote_rootfs(remote, name) for name in remote.names(MANIFESTS)]


def rootfs_state(manifest: Manifest, path: str, source: str = LOCAL) -> RootfsState:
    """Return what is told of an image whose blob is at `path`."""
    return RootfsState(
        manifest.name, manifest.languages, manifest.size, path, source, manifest.digest, manifest.created
    )


def _remote_rootfs(remote: Remote, name: str) -> RootfsState:
    try:
        manifest = _remote_manifest(remote, name)
    except ImageCorrupt as error:
        return RootfsState(name, (), source=REMOTE, making=Making(Status.FAILED, 0, error.message))
    return rootfs_state(manifest, remote.path_of(manifest.digest), REMOTE)


def _remote_manifest(remote: Remote, name: str) -> Manifest:
    """*Raises* ImageCorrupt, NotInBucket, RemoteFailed."""
    try:
        manifest = decode_manifest(remote.read(MANIFESTS, name))
    except ImageCorrupt as error:
        raise ImageCorrupt(f"{remote.place}: {MANIFESTS}/{name}.json: {error.message}; push it again") from None
    if manifest.name != name:
        raise ImageCorrupt(f"the manifest of {name!r} in {remote.place} is of another image, {manifest.name!r}")
    return manifest


def push_image(store: Store, remote: Remote, name: str, tell: Tell = tell_nobody) -> Manifest:
    """Put an image into the bucket: what it is of first, its manifest last. *Raises* ImageError."""
    with store.lease(name) as lease:
        manifest = lease.manifest
        tell(0.0, "reading")
        if manifest.sbom:
            remote.push(store.blob(manifest.sbom), manifest.sbom)
        remote.push(store.blob(manifest.digest), manifest.digest, _counted(tell, manifest.size, 100.0))
        remote.publish(MANIFESTS, name, encode_manifest(manifest))
    return manifest


def pull_image(store: Store, remote: Remote, name: str, tell: Tell = tell_nobody, max_bytes: int = 1 << 40) -> Manifest:
    """Fetch an image from the bucket; the store checks and publishes it. *Raises* ImageError, SandforkError.

    What a broken transfer left is in DIRECTORY/incoming, and goes away with the next that is complete.
    """
    manifest = _remote_manifest(remote, name)
    if max(manifest.size, manifest.tree_bytes) > max_bytes:
        raise ImageCorrupt(f"{name!r} is larger than the {max_bytes >> 20} MiB of images.max_size_mb")
    incoming = store.root / "incoming"
    try:
        incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnusable(f"{error.filename}: {error.strerror}") from None
    bill = remote.read_blob(manifest.sbom, MAX_BILL_BYTES) if manifest.sbom else b""
    partial = incoming / hex_of(manifest.digest)
    remote.pull(manifest.digest, manifest.size, partial, _counted(tell, manifest.size, _FETCHED))
    try:
        return store.adopt(
            manifest, partial, bill, tell=lambda percent, now: tell(_FETCHED + percent * (1 - _FETCHED / 100), now)
        )
    finally:
        partial.unlink(missing_ok=True)


def _counted(tell: Tell, size: int, share: float) -> Tell:
    """Return what tells of a transfer how much of it is done, and takes it for that share of all, in percent."""
    return lambda percent, now: tell(percent * share / 100, f"{size * percent / 100 / 1e6:.1f} of {size / 1e6:.1f} MB")


def _remote_snapshot(remote: Remote, name: str) -> SnapshotState:
    try:
        document = remote.read(SNAPSHOTS, name)
        return snapshot_state(decode_snapshot(document, name), len(document), REMOTE)
    except SnapshotConflict as error:
        return SnapshotState(name, "", source=REMOTE, making=Making(Status.FAILED, 0, error.message))


def snapshot_state(snapshot: Snapshot, document_bytes: int, source: str) -> SnapshotState:
    """Return what is told of a snapshot whose document has that size."""
    return SnapshotState(
        name=snapshot.name,
        language=snapshot.language,
        state_bytes=document_bytes,
        mem_bytes=snapshot.mem_bytes,
        vcpus=snapshot.vcpus,
        source=source,
        template=snapshot.template,
        toolchain=snapshot.toolchain,
        image=snapshot.image,
        created=snapshot.created,
        revision=snapshot.revision,
    )


def push_snapshot(store: SnapshotStore, remote: Remote, name: str) -> None:
    """Put a snapshot into the bucket. *Raises* SnapshotNotFound, SnapshotConflict, RemoteFailed."""
    remote.publish(SNAPSHOTS, name, encode_snapshot(store.get(name)))


def pull_snapshot(store: SnapshotStore, remote: Remote, name: str) -> Snapshot:
    """Fetch a snapshot from the bucket. *Raises* NotInBucket, SnapshotConflict, RemoteFailed, StoreUnusable."""
    snapshot = decode_snapshot(remote.read(SNAPSHOTS, name), name)
    store.put(snapshot)
    return snapshot
