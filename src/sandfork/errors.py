"""The one exception tree: why *we* could not give an outcome.

    SandforkError
    ├── CallerError          the request is at fault; repeating it unchanged cannot help
    │   ├── InvalidRequest
    │   ├── PayloadTooLarge
    │   ├── UnknownLanguage
    │   ├── LanguageGone
    │   ├── SessionNotFound
    │   ├── SessionConflict
    │   │   └── WrongLanguage
    │   ├── FileNotInSandbox
    │   ├── FileTooLarge
    │   ├── DiskFull
    │   ├── SnapshotNotFound
    │   ├── SnapshotConflict
    │   ├── Forbidden        a ceiling of the server or of the key
    │   └── NotSupported     a documented feature that this server does not have
    ├── AccessError
    │   ├── Unauthenticated
    │   └── RateLimited
    ├── CapacityError        a later try may succeed
    │   ├── Overloaded
    │   ├── DeadlinePassed
    │   └── Draining
    ├── ImageError           an image cannot be had, made or kept; the message says why
    │   ├── ImageNotFound
    │   ├── ImageCorrupt
    │   ├── ArchiveRefused
    │   ├── ImageBusy
    │   ├── BuildFailed
    │   ├── StoreUnusable
    │   ├── RemoteFailed
    │   └── NotInBucket
    └── TierError            the machinery failed
        ├── TemplateFailed
        │   └── TemplateGone
        ├── ForkFailed
        ├── GuestLost
        └── TierUnavailable

A program that fails, times out or is killed is not here: it is an `Outcome`. Programming errors of ours stay
plain `RuntimeError`s and end as a 500. Each class is caught once, in `http.app`, and rendered by the dialect
that parsed the request.
"""

from __future__ import annotations


class SandforkError(Exception):
    """Base of all errors of this package.

    `code` is a stable, machine-readable word; `retry_after_s` is set when a later try may succeed.
    """

    code = "internal"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class CallerError(SandforkError):
    """The request is at fault."""

    code = "invalid_request"


class InvalidRequest(CallerError):
    """A field is missing, of a wrong type or out of range; `field` names it ("" for the whole body)."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class PayloadTooLarge(CallerError):
    """The body is larger than the server takes."""

    code = "payload_too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"request body is larger than {max_bytes} bytes")
        self.max_bytes = max_bytes


class UnknownLanguage(CallerError):
    """No language of that name is in the catalogue."""

    code = "unknown_language"

    def __init__(self, name: str, available: tuple[str, ...] = ()) -> None:
        super().__init__(f"unknown language: {name}")
        self.name = name
        self.available = available


class LanguageGone(CallerError):
    """The language of that name was here when the server started, or later, and is no more."""

    code = "language_gone"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is no longer on this server: the image or the packages that it ran on were removed")
        self.name = name


class SessionNotFound(CallerError):
    """No session of that id belongs to this caller and dialect."""

    code = "session_not_found"


class SessionConflict(CallerError):
    """The session is not as the request wants it: it is there already, of another language, or under other limits."""

    code = "session_conflict"


class WrongLanguage(SessionConflict):
    """The session takes programs in `language` only, and not in `name`, which was asked for."""

    def __init__(self, name: str, language: str) -> None:
        super().__init__(f"the session takes programs in {language} only, not in {name}")
        self.name = name
        self.language = language


class FileNotInSandbox(CallerError):
    """A path is missing, not a regular file, or leaves the sandbox's writable directories."""

    code = "file_not_in_sandbox"


class FileTooLarge(CallerError):
    """A file is larger than what this server moves out of a sandbox."""

    code = "file_too_large"

    def __init__(self, path: str, max_bytes: int) -> None:
        super().__init__(f"{path}: is larger than {max_bytes} bytes, the most this server moves")


class DiskFull(CallerError):
    """The sandbox's disk has no room for what is written; the message says what to do."""

    code = "disk_full"


class SnapshotNotFound(CallerError):
    """No snapshot of that name is there."""

    code = "snapshot_not_found"


class SnapshotConflict(CallerError):
    """The snapshot cannot be used as it is; the message says what changed and what to do."""

    code = "snapshot_conflict"


class Forbidden(CallerError):
    """The request asks for more than a ceiling of the server or the key allows; the message names it."""

    code = "forbidden"


class NotSupported(CallerError):
    """A documented feature that this server does not have; the message says what to do instead."""

    code = "not_supported"


class AccessError(SandforkError):
    """The caller is not let in."""

    code = "unauthenticated"


class Unauthenticated(AccessError):
    """No key (`missing` is true) or a wrong one."""

    def __init__(self, *, missing: bool) -> None:
        super().__init__("Missing Authorization header" if missing else "Invalid API key")
        self.missing = missing


class RateLimited(AccessError):
    """The caller's rate is used up until `retry_after_s` from now."""

    code = "rate_limited"


class CapacityError(SandforkError):
    """The server cannot take this now; `retry_after_s` is set."""

    code = "overloaded"


class Overloaded(CapacityError):
    """The queue is full."""


class DeadlinePassed(CapacityError):
    """The request waited in the queue until its deadline."""

    code = "deadline_passed"


class Draining(CapacityError):
    """The server is shutting down and takes nothing new."""

    code = "draining"


class ImageError(SandforkError):
    """An image cannot be had, made or kept."""

    code = "image_error"


class ImageNotFound(ImageError):
    """The store has no image of that name."""

    code = "image_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no image {name!r}")
        self.name = name


class ImageCorrupt(ImageError):
    """Content is not what its digest or its format says."""

    code = "image_corrupt"


class ArchiveRefused(ImageError):
    """An archive is hostile, damaged, too large or of a form that is not taken."""

    code = "archive_refused"


class ImageBusy(ImageError):
    """An image of that name is being made by somebody else."""

    code = "image_busy"

    def __init__(self, name: str) -> None:
        super().__init__(f"image {name!r} is being made already: wait until that is done, or end it")
        self.name = name


class BuildFailed(ImageError):
    """An image could not be built; the message has the builder's last words."""

    code = "build_failed"


class StoreUnusable(ImageError):
    """The store of images cannot be read or written; the message says what to do."""

    code = "store_unusable"


class RemoteFailed(ImageError):
    """A bucket cannot be used, or what it holds is not what it should be; the message says what to do."""

    code = "remote_failed"


class NotInBucket(ImageError):
    """The bucket does not hold that."""

    code = "not_in_bucket"


class TierError(SandforkError):
    """The sandbox machinery failed; `step` and `errno` say where, when the kernel refused something."""

    code = "tier_error"

    def __init__(self, message: str, *, step: str = "", errno: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.step = step
        self.errno = errno


class TemplateFailed(TierError):
    """A template could not be made or died."""

    code = "template_failed"


class TemplateGone(TemplateFailed):
    """A template went after it was chosen, for its image or packages did; what is chosen now is another one."""

    code = "template_gone"


class ForkFailed(TierError):
    """A sandbox could not be forked from its template."""

    code = "fork_failed"


class GuestLost(TierError):
    """The sandbox ended without saying how, and the kernel could not tell either."""

    code = "guest_lost"


class TierUnavailable(TierError):
    """This host cannot offer the tier; the message says what is missing and what would give it."""

    code = "tier_unavailable"
