"""InstaVM's published client, unchanged, against the service with real sandboxes: its SDK and its command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.instavm import InstaVMClient
from tests.support.service import STUCK_S, Service, running_service

KEY, OTHER = "the-right-key", "the-other-key"
EXEC_KEYS = {"stdout", "stderr", "exit_code", "execution_time", "cpu_time", "session_id", "state_lost"}

everywhere = pytest.mark.parametrize("base", ["", "/instavm", "/instavm/"], ids=["root", "prefix", "slash"])


@pytest.fixture(scope="module")
def keyed(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two keys, of all dialects."""
    directory = tmp_path_factory.mktemp("keyed")
    (directory / "api_keys.json").write_text(json.dumps([KEY, OTHER]))
    with running_service(directory) as started:
        yield started


@pytest.fixture
def instavm(keyed: Service, tmp_path: Path) -> InstaVMClient:
    return InstaVMClient(f"{keyed.url}/instavm", KEY, tmp_path)


@everywhere
def test_the_state_of_a_session_is_kept_from_call_to_call(keyed: Service, base: str, tmp_path: Path) -> None:
    first, second, other = InstaVMClient(keyed.url + base, KEY, tmp_path).run(
        "vm = client()\n"
        "answer = [vm.execute('x = 42\\nimport math'), vm.execute('print(x + math.floor(0.5))')]\n"
        "answer.append(client().execute('print(x)'))"
    )
    assert set(first) == EXEC_KEYS
    assert (first["stdout"], first["exit_code"]) == ("", 0)
    assert (second["stdout"], second["stderr"], second["exit_code"]) == ("42\n", "", 0)
    assert second["session_id"] == first["session_id"] != other["session_id"]
    assert second["execution_time"] > 0
    assert (other["stdout"], other["exit_code"]) == ("", 1)
    assert "NameError: name 'x' is not defined" in other["stderr"]


def test_a_first_call_without_a_session_makes_one_and_a_killed_one_is_made_anew(keyed: Service) -> None:
    def execute(**body: Any) -> Any:
        headers = {"X-API-Key": KEY}
        answer = httpx.post(f"{keyed.url}/execute", json=body, headers=headers, timeout=STUCK_S)
        assert answer.status_code == 200, answer.text
        return answer.json()

    first = execute(command="x = 1; x")
    assert (set(first), first["stdout"]) == (EXEC_KEYS, "1\n")
    name = first["session_id"]
    assert execute(code="x", session_id=name)["stdout"] == "1\n"
    killed = httpx.post(f"{keyed.url}/kill", json={"session_id": name, "api_key": KEY})
    assert killed.json()["status"] == "killed"
    anew = execute(command="print('x' in globals())", session_id=name)
    assert (anew["stdout"], anew["session_id"]) == ("False\n", name)


def test_the_value_of_a_last_expression_ends_the_output(instavm: InstaVMClient) -> None:
    shown, quiet = instavm.run(
        "vm = client()\nanswer = [vm.execute('print(1)\\n[2] * 2')['stdout'], vm.execute('print(1)\\nNone')['stdout']]"
    )
    assert (shown, quiet) == ("1\n[2, 2]\n", "1\n")


def test_a_program_that_fails_keeps_the_state_and_has_its_traceback(instavm: InstaVMClient) -> None:
    failed, after = instavm.run(
        "vm = client()\n"
        "answer = [vm.execute(\"y = 7\\nprint('before')\\nraise Exception('boom')\"), vm.execute('print(y)')]"
    )
    assert (failed["stdout"], failed["exit_code"], failed["state_lost"]) == ("before\n", 1, False)
    assert failed["stderr"].splitlines()[0] == "Traceback (most recent call last):"
    assert failed["stderr"].splitlines()[-1] == "Exception: boom"
    assert after["stdout"] == "7\n"


def test_a_shell_keeps_its_directory_and_variables_and_tells_how_its_last_command_ended(
    instavm: InstaVMClient,
) -> None:
    made, seen, failed, file = instavm.run(
        "vm = client(env={'GREETING': 'hello'})\n"
        "answer = [vm.execute('mkdir -p d && cd d && v=5', language='bash')]\n"
        "answer.append(vm.execute('echo $GREETING $v ${PWD##*/}; echo there >&2', language='bash'))\n"
        "answer.append(vm.execute('false', language='bash'))\n"
        "answer.append(vm.execute('import os; print(os.listdir(), os.environ[\"GREETING\"])'))"
    )
    assert made["exit_code"] == 0
    assert (seen["stdout"], seen["stderr"]) == ("hello 5 d\n", "there\n")
    assert failed["exit_code"] == 1
    assert "'d'" in file["stdout"]
    assert file["stdout"].endswith(" hello\n")


def test_a_program_that_takes_too_long_is_answered_in_time_and_its_session_stays_usable(
    instavm: InstaVMClient,
) -> None:
    slow, after = instavm.run(
        "vm = client()\n"
        "answer = [vm.execute(\"import time; z = 1; print('so far', flush=True)\\ntime.sleep(60)\", timeout=4)]\n"
        "answer.append(vm.execute('print(z)', timeout=30))"
    )
    assert (slow["stdout"], slow["exit_code"], slow["state_lost"]) == ("so far\n", 124, False)
    assert slow["stderr"].endswith("Execution timed out after 3s")
    assert after["stdout"] == "1\n"


def test_a_program_that_heeds_no_interrupt_is_answered_in_time_too(instavm: InstaVMClient) -> None:
    stubborn, after = instavm.run(
        "vm = client()\n"
        'code = "import signal, time; z = 1; signal.signal(signal.SIGINT, signal.SIG_IGN)"\n'
        "answer = [vm.execute(code + '\\nwhile True: time.sleep(1)', timeout=12)]\n"
        "answer.append(vm.execute(\"print('z' in globals())\"))"
    )
    assert (stubborn["exit_code"], stubborn["state_lost"]) == (124, True)
    assert "Execution timed out after 9s" in stubborn["stderr"]
    assert after["stdout"] == "False\n"


def test_a_program_that_a_limit_kills_says_so_and_the_session_goes_on_with_its_files(instavm: InstaVMClient) -> None:
    lost, after = instavm.run(
        "vm = client(memory_mb=128)\n"
        "answer = [vm.execute(\"open('kept', 'w').write('still here')\\nx = 1\\nb = bytearray(400 << 20)\")]\n"
        "answer.append(vm.execute(\"print(open('kept').read(), 'x' in globals())\"))"
    )
    assert lost["exit_code"] != 0
    assert after["stdout"] == f"still here {not lost['state_lost']}\n"
    if lost["state_lost"]:
        assert "variables are gone" in lost["stderr"]


def test_a_program_goes_on_without_its_client(instavm: InstaVMClient) -> None:
    task, result, failed = instavm.run(
        "vm = client()\n"
        "task = vm.execute_async(\"import sys; w = 3; print('out'); print('err', file=sys.stderr)\")\n"
        "answer = [task, vm.get_task_result(task['task_id'])]\n"
        "later = vm.execute_async('echo $((6 * 7))', language='bash', timeout=20)\n"
        "answer.append(vm.get_task_result(later['task_id'], poll_interval=1, timeout=30))"
    )
    assert set(task) == {"task_id", "session_id", "status", "created_at"}
    assert (result["stdout"], result["stderr"]) == ("out\n", "err\n")
    assert result["execution_time"] > 0
    assert result["created_at"] == task["created_at"]
    assert failed["stdout"] == "42\n"


def test_files_go_up_and_come_down_byte_for_byte(instavm: InstaVMClient) -> None:
    content = bytes(range(256)) * 8192
    (instavm.home / "data.bin").write_bytes(content)
    (instavm.home / "empty").write_bytes(b"")
    (instavm.home / "local_script.py").write_text("print('a file that went up')")
    size, ran, kept, missing = instavm.run(
        "vm = client()\n"
        "vm.upload_file('data.bin', '/tmp/deep/data.bin', recursive=True)\n"
        "vm.upload_file('empty', 'empty')\n"
        "vm.upload_file('local_script.py', 'app/local_script.py')\n"
        "code = \"b = open('/tmp/deep/data.bin', 'rb').read(); open('back.bin', 'wb').write(b[::-1])\"\n"
        "answer = [vm.execute(code + '; print(len(b))')['stdout']]\n"
        "answer.append(vm.execute('python app/local_script.py', language='bash')['stdout'])\n"
        "vm.download_file('back.bin', local_path='back.bin')\n"
        "answer.append(vm.download_file('empty')['size'])\n"
        "answer.append(error(vm.download_file, 'none'))"
    )
    assert (size, ran, kept) == (f"{len(content)}\n", "a file that went up\n", 0)
    assert (instavm.home / "back.bin").read_bytes() == content[::-1]
    assert missing[0] == "InstaVMError"
    assert "404" in missing[1]


def test_a_session_is_told_listed_and_killed(instavm: InstaVMClient) -> None:
    told = instavm.run(
        "vm = client(memory_mb=256, cpu_count=2, metadata={'team': 'platform', 'n': 5})\n"
        "vm.execute('print(1)')\n"
        "answer = dict(id=vm.session_id, status=vm.get_session_status(), info=vm.get_session_info(),\n"
        "    usage=vm.get_usage(), found=vm.list_sandboxes(metadata={'team': 'platform', 'n': 5}, limit=5),\n"
        "    others=vm.list_sandboxes(metadata={'team': 'none'}), active=vm.is_session_active())\n"
        "answer['killed'] = vm.kill(vm.session_id)\n"
        "answer['after'] = [vm.is_session_active(), error(vm.get_session_info), error(vm.kill)]"
    )
    name = told["id"]
    assert (told["status"]["vm_status"], told["active"]) == ("active", True)
    assert 290 < told["status"]["expires_in_seconds"] <= 300
    assert (told["info"]["session_id"], told["info"]["memory_mb"]) == (name, 256)
    assert told["info"]["metadata"] == {"team": "platform", "n": 5}
    assert told["usage"]["cpu_time"] > 0
    assert told["usage"]["executions"] == 1
    assert ([each["session_id"] for each in told["found"]], told["others"]) == ([name], [])
    assert told["killed"] == {"session_id": name, "vm_id": name, "status": "killed"}
    active, info, kill = told["after"]
    assert not active
    assert (info[0], kill[0]) == ("SessionError", "SessionError")
    assert "404" in kill[1]


def test_a_policy_that_allows_nothing_holds_and_any_other_is_refused(instavm: InstaVMClient) -> None:
    before, denied, refused, after, tried = instavm.run(
        "vm = client()\n"
        "nothing = dict(allow_package_managers=False, allow_http=False, allow_https=False)\n"
        "answer = [vm.get_session_egress(), vm.set_session_egress(**nothing), error(vm.set_session_egress)]\n"
        "answer.append(vm.get_vm_egress(vm.session_id))\n"
        "answer.append(vm.execute(\"import socket; socket.create_connection(('192.0.2.1', 80), 2)\"))"
    )
    assert before == denied == after
    assert not any(before[name] for name in before if name.startswith("allow"))
    assert refused[0] == "NetworkError"
    assert "501" in refused[1]
    assert tried["exit_code"] == 1


PTY = """
async def talk(url):
    shown = b""
    async with websockets.connect(url, ping_interval=20) as socket:
        await socket.send(json.dumps({"type": "resize", "cols": 132, "rows": 43}))
        await socket.send(b"stty size; cd /tmp; pwd; exit 7\\n")
        async for message in socket:
            if isinstance(message, bytes):
                shown += message
            else:
                return shown.decode(), json.loads(message)

vm = client()
vm.execute("open('seen-by-all', 'w').close()")
"""


def test_a_terminal_is_connected_by_its_websocket(instavm: InstaVMClient) -> None:
    talked, opened, listed, sized, got, killed, gone = instavm.run(
        PTY + "first = vm.pty.create(vm.session_id, cols=100, rows=30)\n"
        "url = vm.pty.ws_url(vm.session_id, first['session_id'])\n"
        "answer = [asyncio.run(talk(url))]\n"
        "second = vm.pty.create_for_vm(vm.session_id, login_command='ls; exec cat', pty_id='named')\n"
        "answer += [second, vm.pty.list(vm.session_id), vm.pty.resize(vm.session_id, 'named', 90, 20)]\n"
        "answer += [vm.pty.get_for_vm(vm.session_id, 'named'), vm.pty.kill(vm.session_id, 'named')]\n"
        "answer.append(error(vm.pty.get, vm.session_id, 'named'))"
    )
    shown, end = talked
    assert "43 132" in shown
    assert "/tmp" in shown
    assert end == {"type": "exit", "exit_code": 7}
    assert (opened["session_id"], opened["alive"], opened["cols"], opened["rows"]) == ("named", True, 80, 24)
    assert "named" in [each["session_id"] for each in listed]
    assert (sized["cols"], got["cols"], got["rows"]) == (90, 90, 20)
    assert killed["session_id"] == "named"
    assert gone[0] == "HTTPError"


def test_a_wrong_key_a_ceiling_and_another_keys_session_are_the_errors_the_client_knows(
    instavm: InstaVMClient,
) -> None:
    errors = instavm.run(
        "vm = client()\n"
        "answer = dict(wrong=error(client, 'a-wrong-key'), much=error(client, memory_mb=8192))\n"
        f"other = client({OTHER!r})\n"
        "answer['info'] = error(other.get_session_info, vm.session_id)\n"
        "answer['kill'] = error(other.kill, vm.session_id)\n"
        "answer['language'] = error(vm.execute, 'x', language='elbonian')\n"
        "answer['later'] = error(vm.execute_async, 'x', language='elbonian')\n"
        "answer['timeout'] = error(vm.execute, 'x', timeout=601)\n"
        "answer['few'] = error(client, timeout=19)\n"
        "answer['volumes'] = error(vm.volumes.list)\n"
        "answer['alive'] = vm.is_session_active()"
    )
    kinds = {name: each[0] for name, each in errors.items() if name != "alive"}
    assert kinds == {
        "wrong": "AuthenticationError",
        "much": "ForbiddenError",
        "info": "SessionError",
        "kill": "SessionError",
        "language": "ExecutionError",
        "later": "ExecutionError",
        "timeout": "ExecutionError",
        "few": "SessionError",
        "volumes": "NetworkError",
    }
    assert "memory_mb" in errors["much"][1]
    assert errors["alive"]


def test_a_used_up_rate_is_the_error_the_client_knows(as_root: None, tmp_path: Path) -> None:
    (tmp_path / "api_keys.json").write_text(json.dumps([KEY]))
    config = "[access]\nrate_per_s = 0.001"
    with running_service(tmp_path, "--dialect", "instavm", config=config, tier="fake") as alone:
        first, second = InstaVMClient(alone.url, KEY, tmp_path).run(
            "vm = client(auto_start_session=False)\n"
            "vm.session_id = 'a-session'\n"
            "answer = [error(vm.execute, ''), error(vm.execute, '')]"
        )
    assert first[0] != "RateLimitError"
    assert second[0] == "RateLimitError"
    assert "Rate limit exceeded" in second[1]


def test_the_command_line_runs_code_and_files(instavm: InstaVMClient) -> None:
    (instavm.home / "program.py").write_text("print(sum(range(10)))")
    (instavm.home / "program.sh").write_text("echo $((6 * 7))")
    inline = instavm.cli("exec", "--cmd", "print('hello')\n1 / 0")
    assert inline.returncode == 0
    assert "Stdout\nhello\n" in inline.stdout
    assert "ZeroDivisionError: division by zero" in inline.stdout
    assert instavm.cli_json("exec", "program.py")["stdout"] == "45\n"
    assert instavm.cli_json("exec", "program.sh")["stdout"] == "42\n"
    shell = instavm.cli_json("exec", "--cmd", "echo $0; exit 3", "--language", "bash", "--timeout", "20")
    assert (shell["language"], shell["exit_code"]) == ("bash", 3)


def test_the_command_line_reuses_a_session_lists_it_and_removes_it(instavm: InstaVMClient) -> None:
    name = instavm.cli_json("create", "--timeout", "600", "--memory", "256")["vm_id"]
    assert instavm.cli_json("exec", "--session", name, "--cmd", "state = 5")["session_id"] == name
    assert instavm.cli_json("exec", "--session", name, "--cmd", "state")["stdout"] == "5\n"
    assert name in [each["vm_id"] for each in instavm.cli_json("ls")["vms"]]
    assert name in instavm.cli("ls").stdout
    policy = instavm.cli_json("egress", "get", "--session", name)
    assert (policy["allow_http"], policy["allow_https"], policy["allow_package_managers"]) == (False, False, False)
    deny = ("--deny-http", "--deny-https", "--no-allow-package-managers")
    assert instavm.cli_json("egress", "set", "--vm", name, *deny)["allow_http"] is False
    assert instavm.cli("egress", "set", "--session", name).returncode == 1
    assert instavm.cli_json("rm", name)["results"][0]["status"] == "killed"
    assert name not in [each["vm_id"] for each in instavm.cli_json("ls", "--all")["vms"]]


def test_the_command_line_begins_a_program_and_asks_for_it_later(instavm: InstaVMClient) -> None:
    task = instavm.cli_json("exec", "--cmd", "print('later')", "--async")
    assert instavm.cli_json("exec", "result", task["task_id"])["stdout"] == "later\n"


def test_the_command_line_opens_a_terminal(instavm: InstaVMClient) -> None:
    name = instavm.cli_json("create")["vm_id"]
    status, shown = instavm.at_terminal(("pty", name), b"echo $((6 * 7)); exit 3\n")
    assert b"42\r\n" in shown
    assert status == 3


def test_the_command_line_tells_a_wrong_key(keyed: Service, tmp_path: Path) -> None:
    refused = InstaVMClient(f"{keyed.url}/instavm", "a-wrong-key", tmp_path).cli("exec", "--cmd", "1")
    assert refused.returncode == 1
    assert "Invalid API key" in refused.stderr
