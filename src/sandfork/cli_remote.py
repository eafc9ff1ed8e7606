"""Run a program on a service elsewhere: one POST /v1/exec of `sandfork run --url`."""

from __future__ import annotations

import base64
import os
from dataclasses import asdict
from typing import Any

import httpx

from sandfork.model import ExecRequest, Snippet
from sandfork.serve_refusal import Refused

#: What the service and the network may take beyond the program's own time.
SPARE_S = 60.0
DEFAULT_TIMEOUT_S = 330.0


def run_remote(request: ExecRequest, url: str, key: str | None) -> dict[str, Any]:
    """Run `request` at `url`, write its output to ours, return the reply. *Raises* Refused."""
    wall_s = request.limits.wall_s
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/v1/exec",
            json=body_of(request),
            headers=headers,
            timeout=DEFAULT_TIMEOUT_S if wall_s is None else wall_s + SPARE_S,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Refused(f"{url}: {error}") from None
    reply = _document(answer, url)
    if answer.status_code != httpx.codes.OK:
        raise Refused(f"{url}: {answer.status_code}: {reply.get('error') or answer.reason_phrase}")
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        write_all(descriptor, str(reply.get(name, "")).encode())
    return {"outcome": "exited", "exit_code": 0, "signal": None, "truncated": False, **reply}


def body_of(request: ExecRequest) -> dict[str, Any]:
    """Return the body that asks for `request`; limits that it does not name are the service's."""
    assert isinstance(request.program, Snippet)
    limits = {name: value for name, value in asdict(request.limits).items() if value is not None}
    return {
        "code": request.program.code,
        "language": request.program.language,
        "args": list(request.args),
        "env": dict(request.env),
        "stdin": {"base64": base64.b64encode(request.stdin).decode()},
        "limits": limits,
    }


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`. *Raises* OSError."""
    while data:
        data = data[os.write(descriptor, data) :]


def _document(answer: httpx.Response, url: str) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Refused(f"{url}: answered {answer.status_code} without JSON: is this a sandfork service?")
    return document
