"""The benchmark's own arithmetic, HTTP client and bookkeeping. Nothing here looks at how long anything takes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import signal
import socket
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sandfork.bench import census, contenders, crowd, wire
from sandfork.bench.command import address_of, choice_from, parser
from sandfork.bench.contenders import Absent
from sandfork.bench.machine import describe, steal_share
from sandfork.bench.probe import Execution, Turns, take_turns
from sandfork.bench.report import Report, Row, print_table, write_json, write_markdown
from sandfork.bench.sections import Sizes
from sandfork.bench.service import ServiceFailed, Variant, configuration, own_command, start
from sandfork.bench.spawn import Command, WrongAnswer, loop_on_all_cores, run_once
from sandfork.bench.stats import Reach, Summary, quantile, round_robin, summarise
from sandfork.bench.suite import Choice, Suite
from sandfork.bench.wire import Address, Answer, AnswerParser, Client, ConnectionLost, Load, ProtocolError


def http_answer(body: bytes, status: int = 200) -> bytes:
    return f"HTTP/1.1 {status} Some Reason\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def exec_answer(stdout: str, exit_code: int = 0) -> bytes:
    spans = {"fork_time_ms": 0.1, "exec_time_ms": 0.2, "total_time_ms": 0.4}
    return http_answer(json.dumps({"id": "x", "stdout": stdout, "exit_code": exit_code, **spans}).encode())


class ScriptedServer:
    """Answers each request of any connection with the next scripted answer, the last one over and over.

    An empty answer closes the connection after the one before it.
    """

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self.connections = 0
        self.closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _next(self) -> bytes:
        with self._lock:
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as stream:
            while line := stream.readline():
                length = 0
                while line.strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                    line = stream.readline()
                stream.read(length)
                sock.sendall(self._next())
                if self._answers[0] == b"":
                    self._next()
                    break
        self.closed.set()

    def close(self) -> None:
        # shutdown() wakes the blocked accept; close() alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for sock in [self._listener, *self._sockets]:
            sock.close()


@contextlib.contextmanager
def scripted(*answers: bytes) -> Iterator[ScriptedServer]:
    server = ScriptedServer(list(answers))
    try:
        yield server
    finally:
        server.close()


# --- statistics


def test_a_quantile_between_two_samples_is_interpolated() -> None:
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0


@pytest.mark.parametrize(("q", "value"), [(0, 1.0), (0.5, 2.0), (1, 9.0)])
def test_a_quantile_at_a_sample_is_that_sample(q: float, value: float) -> None:
    assert quantile([1.0, 2.0, 9.0], q) == value


@pytest.mark.parametrize("q", [-0.01, 1.01, math.nan])
def test_a_quantile_outside_zero_to_one_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile([1.0], q)


def test_no_samples_have_no_summary() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


def test_the_99th_percentile_of_fewer_than_100_samples_is_not_claimed() -> None:
    assert summarise(range(99)).p99 is None
    assert summarise(range(101)).p99 == 99


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=300))
def test_a_summary_is_ordered_and_within_its_samples(samples: list[float]) -> None:
    summary = summarise(samples)
    inner = [summary.p50] if summary.p99 is None else [summary.p50, summary.p99]
    assert [summary.min, *inner, summary.max] == sorted([min(samples), *inner, max(samples)])
    assert summary.n == len(samples)


@given(st.lists(st.integers(0, 40), max_size=6))
def test_everyone_gets_exactly_their_turns(turns: list[int]) -> None:
    order = round_robin(turns)
    assert [order.count(index) for index in range(len(turns))] == turns


def test_contenders_of_equal_turns_alternate_strictly() -> None:
    assert round_robin([3, 3]) == [0, 1, 0, 1, 0, 1]


def test_the_turns_of_a_rare_contender_are_spread_over_the_whole() -> None:
    order = round_robin([90, 3])
    assert [index // 31 for index, who in enumerate(order) if who == 1] == [0, 1, 2]


def test_a_bound_includes_its_edge_and_never_holds_for_nan() -> None:
    assert Reach(0.09).holds(0.09)
    assert not Reach(0.09).holds(0.0901)
    assert Reach(3.3, at_most=False).holds(3.3)
    assert not Reach(3.3, at_most=False).holds(3.2)
    assert not Reach(0.09).holds(math.nan)
    assert not Reach(3.3, at_most=False).holds(math.nan)


# --- the HTTP client


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=12))
def test_an_answer_cut_anywhere_is_the_same_answer(body: bytes, cuts: list[int]) -> None:
    parser, wire_bytes, answers = AnswerParser(), http_answer(body, 503), []
    for cut in [*cuts, len(wire_bytes)]:
        chunk, wire_bytes = wire_bytes[:cut], wire_bytes[cut:]
        if chunk:
            answers.append(parser.feed(chunk))
    assert answers[-1] == Answer(503, body)
    assert set(answers[:-1]) <= {None}


def test_a_parser_takes_one_answer_after_another() -> None:
    parser = AnswerParser()
    assert [parser.feed(http_answer(body)) for body in (b"one", b"", b"three")] == [
        Answer(200, b"one"),
        Answer(200, b""),
        Answer(200, b"three"),
    ]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/2 200 OK\r\nContent-Length: 0",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 0",
        b"HTTP/1.1 20\r\nContent-Length: 0",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x10",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 40,
        b"HTTP/1.1 200 OK\r\nContent-Length 5",
    ],
)
def test_a_header_this_client_does_not_understand_is_an_error(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        AnswerParser().feed(head + b"\r\n\r\n")


@given(st.binary(max_size=300))
def test_garbage_is_incomplete_or_an_error_and_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert AnswerParser().feed(garbage) is None


def test_bytes_after_an_answer_are_an_error() -> None:
    with pytest.raises(ProtocolError, match="after the end"):
        AnswerParser().feed(http_answer(b"ok") + b"H")


def test_a_header_without_end_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="no end"):
        AnswerParser().feed(b"HTTP/1.1 200 OK\r\n" + b"X-Pad: y\r\n" * 10_000)


def test_a_request_carries_its_body_length_and_key() -> None:
    head, _, body = wire.exec_request("print('é')", key="k").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/exec HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Authorization: Bearer k" in head
    assert json.loads(body) == {"code": "print('é')", "language": "python"}


def test_refreshing_keeps_a_connection_that_is_merely_idle() -> None:
    with scripted(http_answer(b"ok")) as server, Client(server.address) as client:
        for _ in range(3):
            client.refresh()
            assert client.exchange(wire.request_bytes("GET", "/"))[0] == Answer(200, b"ok")
        assert server.connections == 1


def test_refreshing_replaces_a_connection_the_service_has_closed() -> None:
    with scripted(http_answer(b"one"), b"", http_answer(b"two")) as server, Client(server.address) as client:
        client.exchange(wire.request_bytes("GET", "/"))
        assert server.closed.wait(10)
        client.refresh()
        assert client.exchange(wire.request_bytes("GET", "/"))[0].body == b"two"
        assert server.connections == 2


def test_a_connection_closed_in_the_middle_of_an_answer_is_an_error() -> None:
    cut = http_answer(b"whole")[:-2]
    with scripted(cut, b"") as server, Client(server.address) as client, pytest.raises(ConnectionLost):
        client.exchange(wire.request_bytes("GET", "/"))


def test_a_closed_loop_counts_exactly_the_requests_after_its_warm_up() -> None:
    with scripted(exec_answer("2\n")) as server:
        result = wire.drive(server.address, Load(wire.exec_request("x"), b'"2\\n"', clients=3, requests=20, warm_up=7))
    assert len(result.latencies_ns) == 20
    assert server.connections == 3
    assert result.wrong == 0
    assert result.rate_per_s > 0


def test_a_closed_loop_of_more_clients_than_requests_ends() -> None:
    with scripted(exec_answer("2\n")) as server:
        result = wire.drive(server.address, Load(wire.exec_request("x"), b"2", clients=8, requests=3))
    assert len(result.latencies_ns) == 3


def test_a_closed_loop_counts_wrong_answers_and_keeps_the_first() -> None:
    answers = [
        exec_answer("2\n"),
        exec_answer("3\n"),
        http_answer(b'{"error": "busy, \\"2\\n\\""}', 503),
        exec_answer("2\n"),
    ]
    with scripted(*answers) as server:
        result = wire.drive(server.address, Load(wire.exec_request("x"), b'"2\\n"', clients=1, requests=6))
    assert result.wrong == 2
    assert "3" in result.first_wrong


def test_a_service_that_leaves_under_load_is_an_error() -> None:
    with scripted(exec_answer("2\n"), b"") as server, pytest.raises(ConnectionLost):
        wire.drive(server.address, Load(wire.exec_request("x"), b"2", clients=1, requests=5))


# --- contenders and turns


def test_an_execution_keeps_the_spans_of_right_answers_only() -> None:
    answers = [exec_answer("2\n"), exec_answer("3\n"), exec_answer("2\n", exit_code=1)]
    with scripted(*answers) as server, Execution(server.address, "print(1+1)", "2\n") as execution:
        for _ in range(3):
            execution.run()
    assert (execution.wrong, execution.fork_ms, execution.total_ms) == (2, [0.1], [0.4])


def test_two_equal_outputs_of_a_random_program_are_wrong() -> None:
    answers = [exec_answer("[0.1]\n"), exec_answer("[0.2]\n"), exec_answer("[0.1]\n")]
    with scripted(*answers) as server, Execution(server.address, "rand", None) as execution:
        for _ in range(3):
            execution.run()
    assert execution.wrong == 1


def test_a_refused_execution_is_a_wrong_answer() -> None:
    with scripted(http_answer(b"not json", 429)) as server, Execution(server.address, "x", "2\n") as execution:
        execution.run()
    assert execution.wrong == 1
    assert execution.first_wrong.startswith("429")


def test_contenders_play_in_turns_and_their_plays_are_kept() -> None:
    played: list[str] = []

    def play(name: str, nanoseconds: int) -> Turns:
        return Turns(2, lambda: (played.append(name), nanoseconds)[1])

    one, two = play("one", 1_000_000), play("two", 3_000_000)
    take_turns([one, two], gap_s=0)
    assert played == ["one", "two", "one", "two"]
    assert (one.summary_ms().p50, two.summary_ms().p50) == (1.0, 3.0)


def test_a_program_is_started_with_nothing_but_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFORK_BENCH_TEST", "1")
    assert run_once(Command("env", ("/usr/bin/env",), b"PATH=")) > 0
    with pytest.raises(WrongAnswer):
        run_once(Command("env", ("/usr/bin/env",), b"SANDFORK_BENCH_TEST"))


@pytest.mark.parametrize("argv", [("/bin/echo", "3"), ("/bin/sh", "-c", "echo 2; exit 1")])
def test_a_program_that_prints_or_ends_otherwise_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(WrongAnswer):
        run_once(Command("wrong", argv, b"2\n"))


def test_a_bare_loop_whose_program_fails_is_refused() -> None:
    assert loop_on_all_cores(Command("true", ("/bin/true",), b""), 0.01) > 0
    with pytest.raises(WrongAnswer):
        loop_on_all_cores(Command("false", ("/bin/false",), b""), 0.01)


def test_a_run_of_a_program_leaves_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")
    with contextlib.suppress(WrongAnswer):
        run_once(Command("echo", ("/bin/echo", "2"), b"3"))
    with pytest.raises(FileNotFoundError):
        run_once(Command("absent", ("/nonexistent/program",), b""))
    assert os.listdir("/proc/self/fd") == before


def test_a_contender_that_is_missing_or_broken_is_named_with_its_reason() -> None:
    candidates: list[Command | Absent] = [
        Command("good", ("/bin/echo", "2"), b"2"),
        Absent("missing", "not here"),
        Command("broken", ("/bin/sh", "-c", "echo no such namespace >&2; exit 3"), b"2"),
        Command("nowhere", ("/nonexistent/program",), b"2"),
    ]
    running, absent = contenders.present(candidates)
    assert [command.name for command in running] == ["good"]
    assert [entry.name for entry in absent] == ["missing", "broken", "nowhere"]
    assert absent[1].reason == "does not run here: status 3 no such namespace"


# --- what exists on the machine


def process(pid: int, parent: int, depth: int, inner_pid: int = 2) -> census.Process:
    return census.Process(pid, parent, started=pid, name="p", depth=depth, inner_pid=inner_pid)


def test_descendants_are_the_whole_tree_and_nothing_else() -> None:
    everyone = [process(1, 0, 1), process(5, 1, 1), process(6, 5, 2), process(7, 6, 3), process(8, 1, 1)]
    assert [entry.pid for entry in census.descendants(5, everyone)] == [5, 6, 7]
    assert census.descendants(99, everyone) == []


def test_sandboxes_are_the_innermost_pid_namespaces() -> None:
    tree = [process(5, 1, 1), process(6, 5, 2, 1), process(7, 6, 2), process(8, 6, 3, 1), process(9, 6, 3, 2)]
    inside, count = census.parked_sandboxes(tree)
    assert ([entry.pid for entry in inside], count) == ([8, 9], 1)


def test_a_tree_without_pid_namespaces_has_no_sandboxes() -> None:
    assert census.parked_sandboxes([process(5, 1, 1), process(6, 5, 1)]) == ([], 0)
    assert census.parked_sandboxes([]) == ([], 0)


def test_this_process_is_found_with_its_parent_and_memory() -> None:
    found = next(entry for entry in census.processes() if entry.pid == os.getpid())
    assert found.parent == os.getppid()
    assert 0 < census.pss_bytes(found.pid) <= census.rss_bytes(found.pid)
    assert census.open_files([found.pid]).others > 0


def test_a_process_that_has_ended_has_no_memory_and_no_files() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert (census.process_of(pid), census.pss_bytes(pid), census.open_files([pid])) == (
        None,
        0,
        census.OpenFiles(0, 0),
    )


def slot(number: int) -> list[str]:
    """What a slot of cgroup v1 keeps open, in the server and in the warden."""
    files = ("memory/sandfork-0/s{}/memory.oom_control", "cpu,cpuacct/sandfork-0/s{}/cpuacct.usage")
    return [*(f"/sys/fs/cgroup/{file.format(number)}" for file in files), f"user:[{number}]", f"net:[{number}]"]


OTHERS = ["socket:[1]", "socket:[2]", "net:[100]", "/sys/fs/cgroup/memory/sandfork-0", "pipe:[3]", "pipe:[3]"]


def test_a_slot_that_is_made_later_is_no_file_gained() -> None:
    assert census.sort_files([*OTHERS, *slot(0)]) == census.OpenFiles(1, 6)
    assert census.sort_files([*OTHERS, *slot(0), *slot(1), *slot(12)]) == census.OpenFiles(3, 6)


@pytest.mark.parametrize(
    "leaked", ["socket:[9]", "pipe:[3]", "net:[9]", "user:[9]", slot(1)[0], "/sys/fs/cgroup/memory/sandfork-0", ""]
)
def test_a_file_that_is_left_open_beside_those_of_the_slots_is_gained(leaked: str) -> None:
    before = [*OTHERS, *slot(0), *slot(1)]
    assert census.sort_files([*before, leaked]).others == census.sort_files(before).others + 1


def test_a_network_namespace_is_found_where_a_process_is_in_it_or_holds_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {"ns/net": "net:[1]", "fd/3": "net:[2]", "fd/4": "/dev/null", "fd/5": "mnt:[3]"}
    for name, target in links.items():
        link = tmp_path / "7" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    monkeypatch.setattr(census, "PROC", tmp_path)
    assert census.network_namespaces_of([process(7, 1, 1), process(8, 1, 1)]) == {"net:[1]", "net:[2]"}


def test_the_network_namespace_of_this_process_is_on_this_machine() -> None:
    assert os.readlink("/proc/self/ns/net") in census.belongings().network_namespaces


def test_new_cgroups_count_only_in_subtrees_that_hold_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups, proc = tmp_path / "cgroup", tmp_path / "proc"
    for name in ("memory", "pids"):
        (cgroups / name).mkdir(parents=True)
    (proc / "7").mkdir(parents=True)
    (proc / "7/cgroup").write_text("4:memory:/ours/slot1\n8:pids:/\n")
    monkeypatch.setattr(census, "CGROUPS", cgroups)
    monkeypatch.setattr(census, "PROC", proc)
    ours = {f"{cgroups}/memory/ours{rest}" for rest in ("", "/slot1", "/slot2")}
    new = frozenset(ours | {f"{cgroups}/memory/ours-not", f"{cgroups}/pids/other"})
    assert census.cgroups_of([process(7, 1, 1), process(8, 1, 1)], new) == ours


def test_kernel_memory_grows_by_the_sum_of_its_kinds() -> None:
    now = census.kernel_memory()
    assert now.total_since(now) == 0
    assert census.KernelMemory(2, 3, 4, 5, 6).total_since(census.KernelMemory(1, 1, 1, 1, 1)) == 15


def test_memory_each_is_pss_plus_the_kernels_growth_over_a_service_with_few() -> None:
    few = crowd.Weight(sandboxes=2, pss_bytes=2_000_000, kernel_bytes=5_000_000)
    many = crowd.Weight(sandboxes=1002, pss_bytes=1_002_000_000, kernel_bytes=405_000_000)
    assert crowd.memory_row(few, many).judged == pytest.approx(1.4)


def test_the_time_to_park_is_scaled_from_what_was_seen() -> None:
    row = crowd.time_row(crowd.Filling(elapsed_s=0.5, first=500, last=1000), yardstick_ms=10.0)
    assert row.value == pytest.approx(1.0)
    assert row.judged == pytest.approx(100)


def test_latency_in_a_crowd_is_read_against_the_mean_of_before_and_after() -> None:
    def pace(ours: float, theirs: float) -> crowd.Pace:
        return crowd.Pace(summary(ours), summary(theirs), wrong=1)

    row = crowd.latency_row(pace(1.0, 10.0), pace(3.0, 20.0), pace(2.0, 10.0), parked=1000)
    assert row.judged == pytest.approx(2.0)
    assert row.note.endswith("in bare starts 1.00×")
    assert row.wrong == 3


def test_stolen_time_is_its_share_of_all_that_passed() -> None:
    assert steal_share((0, 0, 0, 0, 0, 0, 0, 0, 0, 0), (50, 0, 0, 40, 0, 0, 0, 10, 50, 0)) == 0.1
    assert steal_share((1,) * 10, (1,) * 10) == 0


# --- the report


def summary(p50: float) -> Summary:
    return Summary(n=3, min=p50, p50=p50, p99=None, max=p50, mean=p50)


def test_a_row_passes_or_misses_by_its_ratio_and_one_without_a_reach_does_neither() -> None:
    assert Row("http_print_p50", "x", 0.8, "ms", 0.08, "bare p50").verdict == "pass"
    assert Row("http_print_p50", "x", 1.0, "ms", 0.1, "bare p50").verdict == "MISS"
    assert Row("bare_print", "x", 10.0, "ms", 1.0, "bare p50").verdict == ""


def test_a_wrong_answer_makes_any_row_a_miss() -> None:
    assert Row("http_print_p50", "x", 0.1, "ms", 0.01, "bare p50", wrong=1).verdict == "MISS"
    assert Row("bare_print", "x", 0.1, "ms", wrong=1).verdict == "MISS"


def test_a_report_holds_only_when_nothing_missed_and_nothing_broke() -> None:
    report = Report(describe(), rows=[Row("burst", "x", 1, "/s", 9.0, "bare loop")], absent=[Absent("runc", "none")])
    assert report.holds
    report.absent.append(Absent("burst", "broke", failed=True))
    assert not report.holds
    assert not Report(describe(), rows=[Row("burst", "x", 1, "/s", 7.0, "bare loop")]).holds


def test_the_json_document_has_machine_rows_verdicts_and_what_is_absent(tmp_path: Path) -> None:
    row = Row("http_print_p50", "print", 0.9, "ms", 0.09, "bare p50", summary(0.9))
    report = Report(describe(), rows=[row], absent=[Absent("runc", "no runc")])
    write_json(report, tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert document["rows"][0]["verdict"] == "pass"
    assert document["rows"][0]["reach"] == "≤ 0.09"
    assert document["rows"][0]["summary"]["n"] == 3
    assert document["absent"] == [{"name": "runc", "reason": "no runc", "failed": False}]


def test_the_table_names_misses_notes_and_what_is_absent() -> None:
    out = io.StringIO()
    rows = [Row("burst", "burst of [64]", 500, "/s", 2.0, "bare loop", note="slowest [1]", wrong=2)]
    print_table(Report(describe(), rows=rows, absent=[Absent("runc", "no [runc]")]), Console(file=out, width=160))
    text = out.getvalue()
    assert "MISS (2 wrong answers)" in text
    assert "slowest [1]" in text
    assert "not measured: runc: no [runc]" in text


def test_the_markdown_has_a_row_a_result_and_names_what_is_absent(tmp_path: Path) -> None:
    rows = [Row("burst", "a | b", 500, "/s", 9.0, "bare loop", note="a note"), Row("left_mounts", "mounts", 0, "", 0)]
    write_markdown(Report(describe(), rows=rows, absent=[Absent("runc", "none")]), tmp_path / "out.md")
    lines = (tmp_path / "out.md").read_text().splitlines()
    assert "| a \\| b | 500 /s |  |  |  |  | 9× bare loop | ≥ 8 | pass |" in lines
    assert "| mounts | 0 |  |  |  |  |  | ≤ 0 | pass |" in lines
    assert lines[-2:] == ["* a | b: a note", "* not measured: runc: none"]


# --- the command line and the run


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "127.0.0.1:8080", "http://127.0.0.1:8080/"])
def test_an_address_is_read_from_a_plain_url(url: str) -> None:
    assert address_of(url) == Address("127.0.0.1", 8080)


@pytest.mark.parametrize("url", ["https://host:1", "http://", "http://host/v1"])
def test_a_url_of_anything_else_is_refused(url: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        address_of(url)


def test_a_quick_run_is_smaller_and_a_command_is_split_into_words() -> None:
    quick = choice_from(parser().parse_args(["--quick", "--command", "sandfork serve --x 'a b'", "--only", "node"]))
    full = choice_from(parser().parse_args([]))
    assert quick.sizes.pairs < full.sizes.pairs
    assert full.sizes.load_requests >= 3000
    assert quick.command == ("sandfork", "serve", "--x", "a b")
    assert quick.only == {"node"}
    assert full.command == own_command()


def test_a_service_that_does_not_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match="status 3:\n  no such key"):
        start(("/bin/sh", "-c", "echo no such key; exit 3"), Variant(), tmp_path)


HEALTHY_SERVICE = """
import http.server, subprocess, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"status": "ok", "templates": {"python": {"parked": 3}, "node": {"parked": 1}}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words): pass
left = sys.argv[1] == "leave" and subprocess.Popen(["sleep", "60"], start_new_session=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[3])), Health).serve_forever()
"""


def healthy(how: str) -> tuple[str, ...]:
    return (sys.executable, "-c", HEALTHY_SERVICE, how)


def test_a_started_service_tells_its_templates_and_leaves_nothing(tmp_path: Path) -> None:
    with start(healthy("clean"), Variant(), tmp_path) as service:
        assert service.templates() == ("python", "node")
        assert (service.parked(), service.parked("node"), service.parked("absent")) == (3, 1, -1)
        assert [process.pid for process in service.tree()] == [service.pid]
        left = service.stop()
    assert left.processes == 0
    assert left.network_namespaces == 0


def test_a_process_that_outlives_its_service_is_counted(tmp_path: Path) -> None:
    with start(healthy("leave"), Variant(), tmp_path) as service:
        service.gone_s = 0
        _, orphan = service.tree()
        try:
            assert service.stop().processes == 1
        finally:
            os.kill(orphan.pid, signal.SIGKILL)


def test_a_variant_names_only_what_differs_from_the_defaults() -> None:
    assert tomllib.loads(configuration(Variant())) == {"process": {"network_namespace": "own"}}
    assert tomllib.loads(configuration(Variant(7, own_network_namespace=False, unused=("python-numpy",)))) == {
        "process": {"network_namespace": "shared"},
        "pool": {"sizes": {"python": 7, "python-numpy": 0}},
    }


def test_a_load_past_its_time_ends_with_what_is_under_way() -> None:
    with scripted(exec_answer("2\n")) as server:
        load = Load(wire.exec_request("x"), b"2", clients=3, requests=1000, limit_s=0)
        assert len(wire.drive(server.address, load).latencies_ns) == 3


def test_turns_past_their_time_end_once_everyone_has_played() -> None:
    often, seldom = Turns(100, lambda: 1), Turns(2, lambda: 1)
    take_turns([often, seldom], gap_s=0, limit_s=0)
    assert len(seldom.taken_ns) == 1
    assert 1 <= len(often.taken_ns) < 100


def test_a_section_that_breaks_is_named_and_the_others_still_run() -> None:
    sizes = Sizes(pairs=1, load_requests=20, loop_s=0.01)
    with scripted(exec_answer("3\n")) as server:
        choice = Choice(sizes, ("unused",), server.address, only=frozenset({"printing", "sustained"}))
        report = Suite(choice, Console(file=io.StringIO())).run()
    broken = [absent for absent in report.absent if absent.failed]
    assert [absent.name for absent in broken] == ["printing"]
    assert "not one right answer" in broken[0].reason
    assert [row.wrong for row in report.rows if row.key.startswith("sustained")] == [120, 120, 120]
    assert not report.holds
