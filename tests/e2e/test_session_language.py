"""A step that names no language, by way of the running service: it is in the language its session was made with."""

from __future__ import annotations

import json

import pytest
from websockets.sync.client import connect

from tests.support.service import STUCK_S, Service
from tests.support.sessions import session_of

#: For each language a session is made with (None is none): what its steps are in, and what they print.
SPOKEN = {
    "python": ("x = 40", "print(x + 2)", "42\n"),
    "javascript": ("let x = 40", "console.log(`${x + 2}`)", "42\n"),
    "bash": ("x=4", "echo ${x}2", "42\n"),
    None: ("x = 40", "print(x + 2)", "42\n"),
}


@pytest.mark.parametrize("language", SPOKEN)
def test_a_step_that_names_no_language_is_in_that_of_its_session(service: Service, language: str | None) -> None:
    keep, tell, told = SPOKEN[language]
    with service.client as client:
        made = client.post("/v1/sessions", json={} if language is None else {"language": language})
        assert made.status_code == 201, made.text
        session = made.json()["id"]
        try:
            first = client.post(f"/v1/sessions/{session}/exec", json={"code": keep}).json()
            assert (first["exit_code"], first["stderr"]) == (0, "")
            body = {"code": tell, "session": session}
            plain = client.post("/v1/exec", json=body).json()
            assert (plain["stdout"], plain["stderr"]) == (told, "")
            batch = client.post("/v1/exec/batch", json={"executions": [body]}).json()
            assert batch["results"][0]["stdout"] == told
            streamed = client.post("/v1/exec", json={**body, "stream": True}).text
            assert json.dumps(told) in streamed
            with connect(f"{service.url.replace('http', 'ws', 1)}/v1/exec/ws", proxy=None) as socket:
                socket.send(json.dumps({"type": "start", **body}))
                events = [json.loads(socket.recv(STUCK_S)) for _ in range(3)]
            assert [event.get("text") for event in events if event["type"] == "stdout"] == [told]
        finally:
            client.delete(f"/v1/sessions/{session}")


def test_a_step_that_names_another_language_is_in_that_and_the_sessions_own_stays(service: Service) -> None:
    with session_of(service, language="javascript") as session:
        session.said("let x = 1", "javascript")
        assert session.said("print('here')", "python") == "here\n"
        unnamed = session.ask("POST", "/exec", json={"code": "console.log(x)"}).json()
        assert unnamed["stdout"] == "1\n"


def test_without_a_session_what_names_no_language_is_python(service: Service) -> None:
    with service.client as client:
        assert client.post("/v1/exec", json={"code": "print([1][0])"}).json()["stdout"] == "1\n"
