"""stdin, stdout and stderr: every byte, in order, however much and whoever still holds an end."""

from __future__ import annotations

import asyncio

import pytest

from sandfork.model import Limits, Outcome, Stream
from tests.support.process import Tape, Workbench, make_step

EVERY_TEMPLATE = {
    "python": "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())",
    "node": "process.stdin.pipe(process.stdout)",
    "command": "exec cat",
}


@pytest.mark.parametrize("template", EVERY_TEMPLATE)
@pytest.mark.parametrize("size", [0, 1, 65536, 5_000_000])
def test_stdin_of_any_size_comes_back_byte_for_byte(workbench: Workbench, template: str, size: int) -> None:
    text = bytes(i * 7 % 251 for i in range(1009)) * (size // 1009 + 1)
    ran = workbench.run(EVERY_TEMPLATE[template], template, stdin=text[:size])
    assert (ran.stdout == text[:size], ran.status) == (True, 0)


def test_a_program_that_reads_a_part_of_stdin_does_not_wait_for_the_rest(workbench: Workbench) -> None:
    ran = workbench.run("import os\nprint(os.read(0, 3))", stdin=b"abc" * 1_000_000)
    assert ran.stdout == b"b'abc'\n"


def test_a_program_that_closes_stdin_goes_on(workbench: Workbench) -> None:
    ran = workbench.run("import os\nos.close(0)\nprint('on')", stdin=b"x" * 1_000_000)
    assert (ran.stdout, ran.status) == (b"on\n", 0)


def test_ten_megabytes_of_output_arrive_whole_and_in_order(workbench: Workbench) -> None:
    code = "import sys\nfor i in range(10): sys.stdout.buffer.write(bytes([65 + i]) * (1 << 20))"
    assert workbench.run(code).stdout == b"".join(bytes([65 + i]) * (1 << 20) for i in range(10))


def test_both_streams_flow_at_the_same_time(workbench: Workbench) -> None:
    code = "import os\nfor _ in range(300):\n    os.write(1, b'o' * 8192)\n    os.write(2, b'e' * 8192)"
    ran = workbench.run(code)
    assert (ran.stdout, ran.stderr) == (b"o" * 300 * 8192, b"e" * 300 * 8192)


def test_a_program_that_made_its_pipe_larger_loses_nothing(workbench: Workbench) -> None:
    code = "import fcntl, os\nprint(fcntl.fcntl(1, 1031, 1 << 20) >> 20, flush=True)\nos.write(1, b'x' * 900_000)"
    assert workbench.run(code).stdout == b"1\n" + b"x" * 900_000


def test_one_byte_writes_arrive_in_order(workbench: Workbench) -> None:
    code = "import os\nfor i in range(20_000): os.write(1, bytes([i % 256]))"
    assert workbench.run(code).stdout == bytes(i % 256 for i in range(20_000))


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    {then}
    os._exit(0)
print('over', flush=True)
"""


@pytest.mark.parametrize(
    "then", ["time.sleep(3600)", "while True: os.write(1, b'')", "signal.pause() if 0 else time.sleep(99)"]
)
def test_a_child_that_keeps_the_streams_open_does_not_keep_the_answer(workbench: Workbench, then: str) -> None:
    ran = workbench.run(DAEMON.format(then=then))
    assert (ran.stdout, ran.end.outcome, ran.status) == (b"over\n", Outcome.EXITED, 0)


def test_what_a_child_writes_after_the_end_belongs_to_nobody(workbench: Workbench) -> None:
    then = "time.sleep(0.05)\n    while True: os.write(1, b'late')"
    ran = workbench.run(DAEMON.format(then=then))
    assert ran.stdout.startswith(b"over\n")
    assert ran.status == 0
    assert workbench.run("print('next')").stdout == b"next\n"


class Reluctant(Tape):
    """Refuses more after the first chunk until it is told to go on."""

    def output(self, stream: Stream, data: bytes) -> bool:
        super().output(stream, data)
        return False


def test_output_still_unread_at_the_end_is_delivered_before_the_answer(workbench: Workbench) -> None:
    async def run() -> bytes:
        sandbox, tape = await workbench.fork(), Reluctant()
        code = "import os, time\nos.write(1, b'first')\ntime.sleep(0.05)\nos.write(1, b' last')"
        task = asyncio.get_running_loop().create_task(sandbox.exec(make_step(code), Limits(), tape))
        while not task.done():
            await asyncio.wait([task], timeout=0.01)
            sandbox.resume()
        await sandbox.close()
        return bytes(tape.stdout)

    assert workbench.wait(run()) == b"first last"


def test_a_kill_answers_a_program_that_is_over_but_unread(workbench: Workbench) -> None:
    async def run() -> None:
        sandbox, tape = await workbench.fork(), Reluctant()
        code = "import os\nos.write(1, b'x' * 60000)\nos.write(2, b'y')"
        task = asyncio.get_running_loop().create_task(sandbox.exec(make_step(code), Limits(), tape))
        await tape.wrote.wait()
        sandbox.kill(Outcome.TIMED_OUT)
        end = await task
        assert end.outcome is Outcome.TIMED_OUT
        await sandbox.close()

    workbench.wait(run())
