"""A program holds the socket it was started by and may write to it: what it says there can harm only its own answer."""

from __future__ import annotations

import pytest

from sandfork.model import Outcome
from tests.support.process import Ran, Workbench

WORDS = """
import os, struct, sys, time
CTL = 63
def frame(kind, body=b''): return struct.pack('=B3xI', ord(kind), len(body)) + body
def end(code=0, ready=0, done=0): return frame('E', struct.pack('=iIQQ', code, 0, ready, done))
def say(words):
    try: os.write(CTL, words)
    except OSError: os._exit(9)
"""


def run(workbench: Workbench, code: str) -> Ran:
    ran = workbench.run(WORDS + code)
    assert workbench.run("print('well')").stdout == b"well\n"
    return ran


def test_an_end_said_early_is_the_end(workbench: Workbench) -> None:
    ran = run(workbench, "print('before', flush=True)\nsay(end(7))\ntime.sleep(0.05)\nprint('after', flush=True)")
    assert (ran.end.outcome, ran.end.exit_code) == (Outcome.EXITED, 7)
    assert ran.stdout.startswith(b"before\n")


def test_stamps_of_a_forged_end_stay_within_what_was_seen_from_here(workbench: Workbench) -> None:
    for ready, done in ((0, 2**64 - 1), (2**64 - 1, 0), (2**63, 2**63)):
        end = run(workbench, f"say(end(0, {ready}, {done}))\ntime.sleep(9)").end
        assert 0 < end.ready_ns <= end.done_ns
        assert end.usage.wall_s < 9


def test_a_status_beyond_a_byte_is_cut_as_the_kernel_cuts_it(workbench: Workbench) -> None:
    assert run(workbench, "say(end(-1))\ntime.sleep(9)").end.exit_code == 255
    assert run(workbench, "say(end(256))\ntime.sleep(9)").end.exit_code == 0


def test_output_after_an_end_changes_nothing(workbench: Workbench) -> None:
    ran = run(workbench, "say(end(0))\nwhile True: os.write(1, b'x' * 4096)")
    assert (ran.end.outcome, ran.end.exit_code) == (Outcome.EXITED, 0)


def test_a_child_that_says_end_ends_the_whole(workbench: Workbench) -> None:
    ran = run(workbench, "if os.fork() == 0:\n    say(end(3))\n    os._exit(0)\ntime.sleep(9)")
    assert ran.end.exit_code == 3


@pytest.mark.parametrize(
    "words",
    [
        "frame('!')",
        "frame('R', b'x' * 40)",
        "frame('E', b'short')",
        "frame('E', b'x' * 60)",
        "frame('S', b'x')",
        "frame('S', b'x' * 8) * 2",
        "frame('?')",
        "b'\\xff' * 8",
        "struct.pack('=B3xI', ord('E'), 0xffffffff)",
        "struct.pack('=B3xI', ord('E'), 65)",
        "os.urandom(4096) + b'\\xff' * 8",
    ],
)
def test_words_no_honest_program_says_end_it_as_a_violation(workbench: Workbench, words: str) -> None:
    ran = run(workbench, f"print('here', flush=True)\nsay({words})\ntime.sleep(9)")
    assert (ran.end.outcome, ran.stdout) == (Outcome.POLICY_VIOLATION, b"here\n")


def test_half_a_frame_waits_for_the_rest_and_the_true_end_counts(workbench: Workbench) -> None:
    ran = run(workbench, "say(end(0)[:5])\nos._exit(4)")
    assert (ran.end.outcome, ran.end.exit_code) == (Outcome.EXITED, 4)


def test_a_flood_of_words_ends_at_the_first_wrong_one(workbench: Workbench) -> None:
    ran = run(workbench, "while True: say(frame('?') * 500)")
    assert ran.end.outcome is Outcome.POLICY_VIOLATION


def test_a_flood_after_the_end_costs_the_server_nothing_more(workbench: Workbench) -> None:
    ran = run(workbench, "say(end(5))\nwhile True: say(end(6) * 100)")
    assert ran.end.exit_code == 5


def test_a_socket_hung_up_leaves_the_exit_status_to_the_kernel(workbench: Workbench) -> None:
    ran = run(workbench, "os.close(CTL)\nsys.exit(6)")
    assert (ran.end.outcome, ran.end.exit_code) == (Outcome.EXITED, 6)


def test_a_program_that_reads_the_socket_finds_nothing_in_it(workbench: Workbench) -> None:
    code = "import socket\ns = socket.socket(fileno=CTL)\ns.setblocking(False)\ntry: print(s.recv(99))\n"
    ran = run(workbench, code + "except BlockingIOError: print('nothing')\ns.detach()")
    assert ran.stdout == b"nothing\n"


def test_a_descriptor_passed_over_the_socket_is_not_taken(workbench: Workbench) -> None:
    code = (
        "import array, socket\ns = socket.socket(fileno=CTL)\nfor _ in range(50):\n"
        "    s.sendmsg([end(0)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2]))])\n"
    )
    assert run(workbench, code).end.exit_code == 0


def test_a_parked_node_is_trusted_no_more(workbench: Workbench) -> None:
    code = "require('fs').writeSync(15, Buffer.from('?'.repeat(16)));\nsetTimeout(() => {}, 9000);"
    assert workbench.run(code, "node").end.outcome is Outcome.POLICY_VIOLATION


def test_a_command_and_the_children_of_node_do_not_hold_the_socket(workbench: Workbench) -> None:
    assert workbench.run("(printf x >&63) 2>/dev/null || echo closed", "command").stdout == b"closed\n"
    spawn = "require('child_process').execFileSync('sh', ['-c', '(printf x >&15) 2>/dev/null || echo closed'])"
    assert workbench.run(f"console.log(String({spawn}))", "node").stdout == b"closed\n\n"
