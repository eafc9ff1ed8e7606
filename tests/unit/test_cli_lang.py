"""`sandfork lang`: what is there, what is missing, what would be installed, and a draft that can be filled in."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from sandfork.cli import app
from sandfork.config.schema import Config, Images, Languages
from sandfork.engine.engine import Engine
from sandfork.images.archive import Bounds
from sandfork.images.making import import_stream
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.languages.checks import check_request
from sandfork.languages.language import Check, CompileSpec, Packages
from sandfork.serve_caches import cache_key, cache_store
from sandfork.serve_install import PREFIX, InstallCommand, commands_for, run_command
from sandfork.serve_languages import load_catalogue
from sandfork.serve_pages import proof_page, proof_rows
from sandfork.serve_proofs import Proof
from sandfork.serve_refusal import Refused
from sandfork.serve_speed import Speed, measure, run_bare
from tests.support.languages import language_text
from tests.support.warm import TEXT as WARM
from tests.support.warm import cache_tar

DRAFTED = language_text("/nowhere/zog", 'packages = { debian = ["zog-pkg"] }')


def lang(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["lang", *words])
    if isinstance(done.exception, Refused):
        return 1, str(done.exception)
    return done.exit_code, done.output


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of languages that the settings name."""
    directory = tmp_path / "languages"
    directory.mkdir()
    monkeypatch.setenv("SANDFORK_LANGUAGES_DIRECTORY", str(directory))
    monkeypatch.chdir(tmp_path)
    return directory


def test_the_list_tells_what_is_installed_and_how_to_have_the_rest(own: Path) -> None:
    (own / "zog.toml").write_text(DRAFTED)
    status, said = lang("list")
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert (status, "yes" in lines["python"], "sandfork lang install zog" in lines["zog"]) == (0, True, True)
    assert "zog" not in lang("list", "--names")[1].split()
    assert "python" in lang("list", "--names")[1].split()


def test_one_language_is_shown_whole_also_by_an_alias() -> None:
    status, said = lang("info", "g++")
    assert status == 0
    for word in ("cpp", "/usr/bin/g++", "{out}", "debian: g++", "compile_error"):
        assert word in said
    assert "SQL has no command line" in lang("info", "sqlite")[1]
    assert "(as prolog: a file of it is taken for perl)" in lang("info", "perl")[1]
    assert "(as verilog: name the language of such a file)" in lang("info", "coq")[1]


@pytest.mark.parametrize("words", [("info", "pyton"), ("install", "pyton"), ("test", "pyton")])
def test_a_name_that_is_no_language_is_refused_with_one_that_is_close(words: tuple[str, ...]) -> None:
    assert lang(*words) == (1, "no language 'pyton': did you mean python?")


def test_a_language_that_is_not_installed_is_not_proven_but_told(own: Path) -> None:
    (own / "zog.toml").write_text(DRAFTED)
    assert lang("test", "zog") == (1, "zog: there is no /nowhere/zog: try `sandfork lang install zog`")


def test_a_draft_is_written_once_and_taken_by_the_catalogue(own: Path) -> None:
    status, said = lang("new", "zog", "--directory", str(own))
    assert (status, "fill it in" in said) == (0, True)
    config = Config(languages=Languages(directory=str(own)))
    assert load_catalogue(config).find("zog") is not None
    assert "exists" in lang("new", "zog", "--directory", str(own))[1]
    assert lang("new", "python") == (1, "there is a language python already")


def test_a_wrong_file_or_directory_of_ones_own_is_refused(own: Path) -> None:
    (own / "zog.toml").write_text(DRAFTED + "colour = 1")
    config = Config(languages=Languages(directory=str(own)))
    with pytest.raises(Refused, match=r"zog\.toml, checks: colour"):
        load_catalogue(config)
    with pytest.raises(Refused, match="there is no directory"):
        load_catalogue(Config(languages=Languages(directory=str(own / "none"))))


def language(name: str, **packages: tuple[str, ...]) -> Language:
    return Language(name, (), ".x", "main.x", ("/usr/bin/x", "{file}"), packages=Packages(**packages))


def test_packages_are_installed_together_from_debian_and_a_directory_a_language_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    pair = [language("one", debian=("b", "a"), npm=("x@1",)), language("two", debian=("a",), pypi=("y==2",))]
    update, debian, npm, pip = commands_for(pair)
    assert update.argv[-1] == "update"
    assert debian.argv[-3:] == ("--", "a", "b")
    assert debian.told
    assert npm.argv[:4] == ("npm", "install", "--prefix", f"{PREFIX}/npm/one")
    assert "--ignore-scripts" in npm.argv
    assert npm.argv[-2:] == ("--", "x@1")
    assert pip.argv[-2:] == (f"{PREFIX}/pypi/two", "y==2")
    (unpack,) = commands_for([language("four", pypi_files=("hy==1 sha256:00",))])
    assert (unpack.argv[-2:], unpack.fed) == (("--target", f"{PREFIX}/pypi/four"), "hy==1 --hash=sha256:00\n")
    assert commands_for([language("three")]) == []


def test_a_client_that_is_not_there_is_told_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(Refused, match="there is no apt-get on this host"):
        commands_for([language("one", debian=("a",))])


def test_a_command_that_fails_is_refused_with_its_last_words() -> None:
    told: list[tuple[float, str]] = []
    fails = InstallCommand("try", (sys.executable, "-c", "print('first'); print('no such package'); exit(7)"))
    with pytest.raises(Refused, match=r"try failed with status 7:\nfirst\nno such package"):
        run_command(fails, lambda *what: told.append(what))
    assert told == [(0.0, "first"), (0.0, "no such package")]


def test_a_command_that_tells_how_far_it_is_is_followed() -> None:
    told: list[tuple[float, str]] = []
    script = (
        "import os, sys\n"
        "fd = int(sys.argv[2].partition('=')[2])\n"
        "for line in ('dlstatus:1:50.0:Getting it', 'pmstatus:x:40.0:Unpacking', 'nonsense', 'pmstatus:x:y:z'):\n"
        "    os.write(fd, line.encode() + b'\\n')\n"
    )
    command = InstallCommand("apt", (sys.executable, "-c", script, "install"), told=True)
    run_command(command, lambda *what: told.append(what))
    assert told == [(25.0, "Getting it"), (70.0, "Unpacking")]


def test_proofs_are_shown_with_times_where_there_are_any() -> None:
    lua, c = Catalogue.load().find("lua"), Catalogue.load().find("c")
    assert lua is not None
    assert c is not None
    plain = [Proof(lua, "5.4.4", (("wall", "exited"),)), Proof(c, "12.2.0", ())]
    head, first, second = proof_rows(plain, timed=False)
    assert head == ("language", "version", "runs by", "checks")
    assert first == ("lua", "5.4.4", "fork", "6/7")
    assert second == ("c", "12.2.0", "compile, exec", "8/8")
    timed = [plain[0], Proof(c, "12.2.0", (), Speed(0.05, 0.0525, 0.002))]
    assert proof_rows(timed, timed=True)[2][4:] == ("50", "52.5", "1.05x", "2", "0.04x")
    assert proof_rows(timed, timed=True)[1][4:] == ("",) * 5
    assert "| c | 12.2.0 | compile, exec | 8/8 | 50 | 52.5 | 1.05x | 2 | 0.04x |" in proof_page(timed)
    assert proof_page(plain).splitlines()[-2] == "| lua | 5.4.4 | fork | 6/7 |  |  |  |  |  |", "a page is of one form"


def test_a_program_that_cannot_be_timed_is_a_problem_and_no_check_that_failed() -> None:
    c = Catalogue.load().find("c")
    assert c is not None
    assert Proof(c, "", (("time", "no sandboxes"),)).passed == len(c.checks)


class ResizedEngine:
    """What is asked of an engine before the first sandbox is timed."""

    def __init__(self) -> None:
        self.targets: dict[str, int] = {}

    def resize(self, key: str, target: int) -> None:
        """Note it."""
        self.targets[key] = target


def test_a_toolchain_that_does_not_run_bare_has_no_times_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    fails = ("/bin/sh", "-c", "echo no such user >&2; exit 3", "{file}")
    engine = ResizedEngine()
    made = Language("zog", (), ".zog", "main.zog", fails, checks=(Check("hello", "1"),))
    assert asyncio.run(measure(cast(Engine, engine), made, 3)) is None
    assert "zog: its bare toolchain does not run: no such user" in caplog.text
    assert engine.targets == {"command": 0}


def test_what_a_toolchain_needs_to_run_bare_is_done_for_it() -> None:
    asks = ("/bin/sh", "-c", 'test "$NAMED" = yes', "{file}")
    made = Language("zog", (), ".zog", "main.zog", asks, checks=(Check("hello", "1"),))
    request = check_request(made, made.checks[0])
    with pytest.raises(subprocess.CalledProcessError):
        run_bare(made, request)
    assert run_bare(replace(made, bare_argv=("/usr/bin/env", "NAMED=yes")), request) > 0


def test_a_language_that_is_not_there_says_what_would_install_it() -> None:
    missing = Language(
        "zog", (), ".zog", "main.zog", ("{out}",), compile=CompileSpec(("/nowhere/zog", "{name}"), (".build/main",))
    )
    assert missing.missing(lambda path: False) == ("/nowhere/zog",)


def test_a_language_without_a_warm_cache_is_not_warmed(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFORK_IMAGES_DIRECTORY", str(own / "images"))
    (own / "zog.toml").write_text(DRAFTED)
    assert lang("warm", "sh") == (1, "sh has no warm cache: its file has no [warm]")
    assert lang("warm", "zog") == (1, "zog is not installed: try `sandfork lang install zog`")


def test_info_tells_whether_a_warm_cache_fits(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFORK_IMAGES_DIRECTORY", str(own / "images"))
    (own / "made.toml").write_text(WARM.replace("FILL", ":").replace("TOOL", "/bin/sh"))
    status, said = lang("info", "made")
    assert (status, "no: none was made; `sandfork lang warm made`" in " ".join(said.split())) == (0, True)
    config = Config(images=Images(directory=str(own / "images")), languages=Languages(directory=str(own)))
    language = load_catalogue(config).find("made")
    assert language is not None
    key = cache_key(config, language)
    import_stream(cache_store(config), "made", io.BytesIO(cache_tar()), lambda: None, key, Bounds())
    assert "0.0 MB of 20" in " ".join(lang("info", "made")[1].split())
    assert lang("warm", "made")[1].startswith("There is nothing to fill")
    assert "warm cache" not in lang("info", "sh")[1]
