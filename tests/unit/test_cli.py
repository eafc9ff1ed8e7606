"""The command line over the fake tier: what is printed, where, and how it ends."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from sandfork import __version__
from sandfork.access import load_keys, parse_keys
from tests.support.languages import language_text
from tests.support.service import STUCK_S, command, run_command

RUN = ("run", "--tier", "fake")


def refused(*words: str, cwd: Path, stdin: bytes = b"", env: dict[str, str] | None = None, status: int = 1) -> str:
    """Run a command that must be refused: one line on stderr, no traceback, nothing on stdout; return the line."""
    done = run_command(*words, cwd=cwd, stdin=stdin, env=env)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == status, lines
    assert done.stdout == b""
    told = [line for line in lines if not line.startswith("{")]
    assert len(told) == 1, lines
    assert told[0].startswith("sandfork: ")
    return told[0]


def test_help_lists_the_commands_and_version_names_the_version(tmp_path: Path) -> None:
    shown = run_command("--help", cwd=tmp_path).stdout.decode()
    assert all(name in shown for name in ("serve", "run", "doctor", "bench", "keys", "config"))
    assert run_command("--version", cwd=tmp_path).stdout.decode().strip() == f"sandfork {__version__}"


@pytest.mark.parametrize("command", ["serve", "run", "doctor", "config", "keys"])
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    done = run_command(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert b"Usage: sandfork " in done.stdout


def test_a_wrong_option_ends_with_status_2(tmp_path: Path) -> None:
    done = run_command("serve", "--prot", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert b"Usage: sandfork serve [OPTIONS]" in done.stderr, "whatever file it was started from"
    assert b"No such option" in done.stderr


def test_run_passes_output_on_and_ends_with_the_programs_status(tmp_path: Path) -> None:
    done = run_command(*RUN, "-e", "out to stdout\nerr to stderr\nexit 7", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, b"to stdout\n")
    assert b"to stderr\n" in done.stderr


def test_run_reads_a_file_and_gives_it_arguments_and_stdin(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("args\ncat")
    done = run_command(*RUN, "program.py", "one", "--two", cwd=tmp_path, stdin=b"typed\n")
    assert done.stdout.decode().split("\n") == ["one --two", "typed", ""]


@pytest.mark.parametrize("words", [(), ("-",)])
def test_run_reads_the_program_from_stdin(words: tuple[str, ...], tmp_path: Path) -> None:
    assert run_command(*RUN, *words, cwd=tmp_path, stdin=b"out from stdin").stdout == b"from stdin\n"


def test_run_takes_words_after_code_as_arguments(tmp_path: Path) -> None:
    assert run_command(*RUN, "-e", "args", "a", "b", cwd=tmp_path).stdout == b"a b\n"


def test_run_sets_environment_variables(tmp_path: Path) -> None:
    assert run_command(*RUN, "--env", "NAME=a=b", "-e", "env NAME", cwd=tmp_path).stdout == b"a=b\n"


def test_run_ends_with_124_when_the_time_is_over(tmp_path: Path) -> None:
    done = run_command(*RUN, "--timeout", "0.05", "-e", "out before\nsleep 60", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (124, b"before\n")
    assert b"sandfork: stopped: timed_out" in done.stderr


def test_run_ends_with_128_and_the_signal_and_says_so(tmp_path: Path) -> None:
    done = run_command(*RUN, "-e", "signal 11", cwd=tmp_path)
    assert done.returncode == 139
    assert b"sandfork: ended by signal 11" in done.stderr


def test_run_says_which_limit_stopped_the_program(tmp_path: Path) -> None:
    done = run_command(*RUN, "-e", "limit out_of_memory", cwd=tmp_path)
    assert done.returncode == 137
    assert b"sandfork: stopped: out_of_memory" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("none.py",), "none.py: No such file or directory"),
        (("program.xyz",), "program.xyz: no language has the extension .xyz"),
        (("program.m",), "program.m: objective-c and octave have the extension .m: name one with --language"),
        (("binary.py",), "binary.py: is not UTF-8 text"),
        (("--env", "NAME", "-e", ""), "--env NAME: expected NAME=VALUE"),
        (("--memory", "lots", "-e", ""), "--memory: expected a size"),
    ],
)
def test_run_refuses_what_it_cannot_use_with_status_2(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    for name in ("program.xyz", "program.m"):
        (tmp_path / name).write_text("")
    (tmp_path / "binary.py").write_bytes(b"\xff")
    assert told in refused(*RUN, *words, cwd=tmp_path, status=2)


def test_run_knows_the_extensions_of_a_directory_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "zog.toml").write_text(language_text("/bin/cat"))
    (tmp_path / "program.zog").write_text("out zogged")
    settings = {"SANDFORK_LANGUAGES_DIRECTORY": str(tmp_path)}
    assert run_command(*RUN, "program.zog", cwd=tmp_path, env=settings).stdout == b"zogged\n"


def test_run_refuses_an_unknown_language_with_the_known_ones(tmp_path: Path) -> None:
    assert "unknown language: klingon" in refused(*RUN, "--language", "klingon", "-e", "", cwd=tmp_path)


def test_run_says_when_no_service_answers_at_the_url(tmp_path: Path) -> None:
    told = refused("run", "--url", "http://127.0.0.1:1", "-e", "", cwd=tmp_path)
    assert "http://127.0.0.1:1: " in told


def test_config_shows_values_and_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "sandfork.toml").write_text("[server]\nport = 9000\n")
    shown = run_command("config", cwd=tmp_path, env={"SANDFORK_SERVER_HOST": "::1"}).stdout.decode()
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert rows["server.port"] == ["9000", "sandfork.toml"]
    assert rows["server.host"] == ['"::1"', "SANDFORK_SERVER_HOST"]
    assert rows["server.dialect"] == ['"all"', "default"]
    assert rows["admission.max_running"][1] == "automatic"


def test_config_docs_is_the_page_in_the_documentation(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/reference/configuration.md"
    shown = run_command("config", "--docs", cwd=tmp_path).stdout.decode()
    assert shown == page.read_text(), "./dev docs writes the page afresh"


def test_an_unusable_setting_is_refused_by_every_command_that_reads_settings(tmp_path: Path) -> None:
    (tmp_path / "sandfork.toml").write_text("[server]\nprot = 9000\n")
    for words in (("config",), ("serve",), ("doctor",), ("keys", "list"), (*RUN, "-e", "")):
        told = refused(*words, cwd=tmp_path)
        assert "sandfork.toml: unknown key server.prot: did you mean server.port?" in told


def test_a_new_key_is_printed_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    done = run_command("keys", "new", "alice", "--rate", "5", cwd=tmp_path)
    key = done.stdout.decode().strip()
    path = tmp_path / "api_keys.json"
    assert key.startswith("sf_live_")
    assert len(key) > 40
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (entry,) = load_keys(path)
    (same,) = parse_keys(json.dumps([{"name": "alice", "key": key}]).encode())
    assert (entry.name, entry.sha256, entry.rate_per_s) == ("alice", same.sha256, 5.0)


def test_keys_are_listed_by_name_and_revoked_by_name(tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        run_command("keys", "new", name, cwd=tmp_path)
    shown = run_command("keys", "list", cwd=tmp_path).stdout.decode()
    assert [line.split()[0] for line in shown.splitlines()] == ["name", "alice", "bob"]
    assert run_command("keys", "revoke", "alice", cwd=tmp_path).returncode == 0
    assert [entry.name for entry in load_keys(tmp_path / "api_keys.json")] == ["bob"]


def test_plain_keys_in_the_file_stay_and_can_be_revoked_by_their_derived_name(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    path.write_text('["zb_live_key1", "zb_live_key2"]')
    run_command("keys", "new", "alice", cwd=tmp_path)
    assert json.loads(path.read_text())[:2] == ["zb_live_key1", "zb_live_key2"]
    first = load_keys(path)[0].name
    run_command("keys", "revoke", first, cwd=tmp_path)
    assert json.loads(path.read_text())[0] == "zb_live_key2"


def test_revoking_the_last_key_leaves_a_file_that_refuses_to_start_and_says_so(tmp_path: Path) -> None:
    run_command("keys", "new", "alice", cwd=tmp_path)
    done = run_command("keys", "revoke", "alice", cwd=tmp_path)
    assert b"refuses to start" in done.stderr
    assert "holds no key" in refused("serve", "--tier", "fake", cwd=tmp_path)
    assert run_command("keys", "new", "bob", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        ("[1", ("list",), "is not valid JSON"),
        ("{}", ("new", "x"), "must hold a JSON list"),
        ("[1]", ("list",), "entry 1 is neither a string nor an object"),
        ('["k"]', ("revoke", "x"), "has no key named x"),
        ('[{"name": "x", "key": "k"}]', ("new", "x"), "has a key named x already"),
    ],
)
def test_keys_refuses_a_file_it_cannot_use(content: str, words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    (tmp_path / "api_keys.json").write_text(content)
    assert told in refused("keys", *words, cwd=tmp_path)
    assert (tmp_path / "api_keys.json").read_text() == content


def test_the_keys_file_of_the_other_systems_variable_is_used(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.json"
    run_command("keys", "new", "alice", cwd=tmp_path, env={"ZEROBOOT_API_KEYS_FILE": str(path)})
    assert [entry.name for entry in load_keys(path)] == ["alice"]


def test_output_to_a_reader_that_is_gone_ends_quietly(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_command_to(writing, "config", "--docs", cwd=tmp_path)
    os.close(writing)
    assert b"Traceback" not in done


def run_command_to(stdout: int, *words: str, cwd: Path) -> bytes:
    """Run a command with `stdout` as its standard output and return its stderr."""
    done = subprocess.run(
        command(*words),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=STUCK_S,
        check=False,
    )
    return done.stderr


def test_a_snapshot_that_cannot_be_removed_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "images/snapshots/small.json").mkdir(parents=True)
    told = refused("snapshot", "remove", "small", cwd=tmp_path)
    assert told.endswith(f"the store of snapshots in {tmp_path}/images/snapshots: Is a directory")


def test_a_damaged_image_is_told_beside_the_others_and_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "tree/usr").mkdir(parents=True)
    assert run_command("rootfs", "from-dir", "tree", "--name", "whole", cwd=tmp_path).returncode == 0
    (tmp_path / "images/manifests/bad.json").write_text("{")
    done = run_command("rootfs", "list", cwd=tmp_path)
    assert done.returncode == 1
    assert b"whole" in done.stdout
    (told,) = done.stderr.decode().splitlines()
    assert told.startswith(f"sandfork: {tmp_path}/images/manifests/bad.json: this is no manifest of an image")
    assert run_command("rootfs", "remove", "bad", cwd=tmp_path).returncode == 0
    assert run_command("rootfs", "list", cwd=tmp_path).returncode == 0
