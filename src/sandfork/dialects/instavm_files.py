"""InstaVM's files: one up as a form's file, one down as base64."""

from __future__ import annotations

import msgspec

from sandfork.dialects.actions import FileReply, ReadFile, WriteFile
from sandfork.dialects.base import Bounds, RawRequest, Reply
from sandfork.dialects.fields import around_content
from sandfork.dialects.instavm_sessions import check_session
from sandfork.dialects.instavm_wire import DownloadReply, UploadReply
from sandfork.errors import InvalidRequest

EMPTY = "\n"
"""Base64 of nothing, for clients that take an empty text for no content: a line break, which decoders skip."""

_encode = msgspec.json.Encoder().encode


def parse_upload(raw: RawRequest, bounds: Bounds) -> WriteFile:
    """Read where a file is to go: in a directory it keeps its name. *Raises* InvalidRequest, CallerError."""
    session, path = check_session(_field(raw, "session_id")), _field(raw, "remote_path")
    if raw.file is None:
        raise InvalidRequest("file", "is required")
    if path.endswith("/"):
        path += raw.file.filename.rpartition("/")[2]
    return WriteFile(session, path)


def parse_download(raw: RawRequest, bounds: Bounds) -> ReadFile:
    """Read which file is meant. *Raises* InvalidRequest, CallerError."""
    return ReadFile(check_session(_field(raw, "session_id")), _field(raw, "filename"))


def _field(raw: RawRequest, name: str) -> str:
    value = (raw.form or {}).get(name)
    if not value:
        raise InvalidRequest(name, "is required")
    return value


def render_uploaded(action: WriteFile, size_bytes: int, request_id: str) -> Reply:
    """Tell that a file is there."""
    return Reply(_encode(UploadReply(action.session, action.path, size_bytes)))


def render_download(action: ReadFile, size_bytes: int, request_id: str) -> FileReply:
    """Give a file."""
    return FileReply(around_content(DownloadReply(action.path, "", size_bytes), "" if size_bytes else EMPTY))
