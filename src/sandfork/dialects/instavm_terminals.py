"""InstaVM's terminals: open, tell, list, resize, close, and the messages of their WebSocket.

Binary messages are what is typed and shown. Text is control, as JSON: `{"type": "resize", "cols": 80, "rows": 24}` from
the client, `{"type": "exit", "exit_code": 0}` to it; text of any other kind asks for nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from sandfork.dialects.actions import (
    CloseTerminal,
    Input,
    ListTerminals,
    Nothing,
    OpenTerminal,
    ReadTerminal,
    Resize,
    ResizeTerminal,
    Told,
)
from sandfork.dialects.base import Bounds, RawRequest, Reply
from sandfork.dialects.fields import decode_body, instant
from sandfork.dialects.instavm_sessions import session_of
from sandfork.dialects.instavm_wire import (
    ClosedReply,
    Columns,
    SizeBody,
    TerminalBody,
    TerminalReply,
    TerminalsReply,
)
from sandfork.errors import InvalidRequest
from sandfork.model import TerminalSpec, TerminalState

SHELL = "/bin/bash"
ENV = (("TERM", "xterm-256color"),)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_body = msgspec.json.Decoder(TerminalBody)
_size_body = msgspec.json.Decoder(SizeBody)
_encode = msgspec.json.Encoder().encode


class SizeMessage(msgspec.Struct, frozen=True):
    """The one control message of a client."""

    type: Literal["resize"]
    cols: Columns
    rows: Columns


class ExitMessage(msgspec.Struct, frozen=True):
    """The last message to a client."""

    exit_code: int | None
    type: Annotated[str, msgspec.Meta(description="Always `exit`.")] = "exit"


_message = msgspec.json.Decoder(SizeMessage)


def parse_open(raw: RawRequest, bounds: Bounds) -> OpenTerminal:
    """Read a terminal to open. *Raises* InvalidRequest."""
    body = decode_body(_body, raw.body)
    if body.id is not None and _NAME.fullmatch(body.id) is None:
        raise InvalidRequest("id", "must be of letters, digits, '.', '_' and '-', at most 64")
    argv: tuple[str, ...] = (SHELL, "-il")
    if body.command is not None:
        argv = (SHELL, "-lc", body.command)
    elif body.shell:
        argv = (body.shell,)
    return OpenTerminal(session_of(raw), TerminalSpec(argv, body.cols, body.rows, ENV), body.id)


def parse_read(raw: RawRequest, bounds: Bounds) -> ReadTerminal:
    """Read which terminal is meant."""
    return ReadTerminal(*select(raw))


def parse_list(raw: RawRequest, bounds: Bounds) -> ListTerminals:
    """Read whose terminals are meant."""
    return ListTerminals(session_of(raw))


def parse_resize(raw: RawRequest, bounds: Bounds) -> ResizeTerminal:
    """Read a terminal's new size. *Raises* InvalidRequest."""
    body = decode_body(_size_body, raw.body)
    return ResizeTerminal(*select(raw), body.cols, body.rows)


def parse_close(raw: RawRequest, bounds: Bounds) -> CloseTerminal:
    """Read which terminal is to end."""
    return CloseTerminal(*select(raw))


def select(raw: RawRequest) -> tuple[str, str]:
    """Return the names of the session and the terminal that a path names."""
    return session_of(raw), raw.params["pty_id"]


def render_terminal(action: object, state: TerminalState, request_id: str) -> Reply:
    """Tell one terminal."""
    return Reply(_encode(_told(state)))


def render_list(action: ListTerminals, states: Sequence[TerminalState], request_id: str) -> Reply:
    """List the terminals of a session."""
    return Reply(_encode(TerminalsReply([_told(state) for state in states])))


def render_closed(action: CloseTerminal, nothing: None, request_id: str) -> Reply:
    """Tell that a terminal ended."""
    return Reply(_encode(ClosedReply(action.name)))


def receive(message: str | bytes) -> Told:
    """Read one message of a client."""
    if isinstance(message, bytes):
        return Input(message) if message else Nothing()
    try:
        size = _message.decode(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return Nothing()
    return Resize(size.cols, size.rows)


def tell_exit(exit_code: int | None) -> str:
    """Return the message that a terminal's command is over."""
    return _encode(ExitMessage(exit_code)).decode()


def _told(state: TerminalState) -> TerminalReply:
    return TerminalReply(
        session_id=state.name,
        vm_id=state.session,
        command=shlex.join(state.argv),
        cols=state.cols,
        rows=state.rows,
        alive=state.exit_code is None,
        exit_code=state.exit_code,
        created_at=instant(state.created_s),
    )
