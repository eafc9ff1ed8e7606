"""Small habits of the source: where the environment is read, which names are avoided, what a test may not do."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

import sandfork
from sandfork.config import Config
from sandfork.config.loading import entries
from tests.style.source import ROOT, Module, imports, invented, modules, modules_of_tests, project_files

VAGUE_WORDS = {"manager", "handler", "helper", "helpers", "util", "utils", "core", "data", "info", "common", "misc"}
#: Runs where there is no configuration: inside a sandbox, in a process of pip's.
READS_ITS_OWN_ENVIRONMENT = ("sandfork.config.", "sandfork.guest.", "sandfork.images.unbuilt.")
#: Written in two pieces, so that this file does not hold what it looks for.
REGISTRY_HOSTS = ("pypi" + ".org", "python" + "hosted", "npmjs" + ".", ".debian" + ".org", "archive.ubuntu" + ".com")
MACHINE_PATHS = ("/wo" + "rk/", "../sha" + "red", ".lib" + "rary/", "/home/" + "runner")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
SLEEPS = {"time.sleep", "asyncio.sleep", "anyio.sleep", "trio.sleep"}

Rule = Callable[[Module], Iterator[str]]


def reads_no_environment(module: Module) -> Iterator[str]:
    if f"{module.name}.".startswith(READS_ITS_OWN_ENVIRONMENT):
        return
    for node in ast.walk(module.tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", None)
        if name in ("environ", "getenv", "environb"):
            yield f"{module.relative}:{node.lineno}: only config reads the environment"


def has_a_telling_name(module: Module) -> Iterator[str]:
    for word in re.split(r"[._]", module.name):
        if word in VAGUE_WORDS:
            yield f"{module.relative}: {word!r} says nothing"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            words = {word.lower() for word in re.findall(r"[A-Z][a-z]*", node.name)}
            if vague := words & VAGUE_WORDS:
                yield f"{module.relative}:{node.lineno}: {node.name}: {vague.pop()!r} says nothing"


def never_sleeps(module: Module) -> Iterator[str]:
    """A test waits for an event or moves a virtual clock, under which asyncio.sleep takes no time; sleep(0) neither."""
    virtual = any(name.startswith("tests.support.clock") for _, name in imports(module))
    allowed = {"asyncio.sleep"} if virtual or module.name == "tests.support.clock" else set()
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        instant = len(node.args) == 1 and ast.unparse(node.args[0]) == "0"
        if name in SLEEPS and name not in allowed and not instant:
            yield f"{module.relative}:{node.lineno}: a test that sleeps is slow or flaky or both"
    for line, name in imports(module):
        if name in SLEEPS:
            yield f"{module.relative}:{line}: {name} is called by its whole name, so that it is seen"


def names_tests_as_sentences(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""
        if name.startswith("test_") and name.count("_") < 3:
            yield f"{module.relative}: {name} is no sentence"


RULES: tuple[tuple[Rule, Callable[[], tuple[Module, ...]], str, str], ...] = (
    (reads_no_environment, modules, "sandfork.engine.engine", "import os\nx = os.environ['HOME']"),
    (reads_no_environment, modules, "sandfork.engine.engine", "from os import getenv"),
    (has_a_telling_name, modules, "sandfork.engine.helpers", ""),
    (has_a_telling_name, modules, "sandfork.engine.pool", "class PoolManager: ..."),
    (never_sleeps, modules_of_tests, "tests.unit.test_x", "import time\ntime.sleep(0.1)"),
    (never_sleeps, modules_of_tests, "tests.unit.test_x", "from time import sleep"),
    (never_sleeps, modules_of_tests, "tests.unit.test_x", "import asyncio\nasync def f(): await asyncio.sleep(1)"),
    (never_sleeps, modules_of_tests, "tests.unit.test_x", "import tests.support.clock, time\ntime.sleep(1)"),
    (names_tests_as_sentences, modules_of_tests, "tests.unit.test_x", "def test_pool(): ..."),
)


@pytest.mark.parametrize(
    ("rule", "those"), dict.fromkeys((rule, those) for rule, those, _, _ in RULES), ids=lambda value: value.__name__
)
def test_every_module_keeps_the_habit(rule: Rule, those: Callable[[], tuple[Module, ...]]) -> None:
    assert [violation for module in those() for violation in rule(module)] == []


@pytest.mark.parametrize(("rule", "those", "name", "text"), RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_habit_is_missed_where_it_is_broken(
    rule: Rule, those: Callable[[], tuple[Module, ...]], name: str, text: str
) -> None:
    assert list(rule(invented(name, text)))


def lines_of_project() -> Iterator[tuple[str, str]]:
    """Yield (place, line) of every line of text in the project."""
    for path in project_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    forbidden = REGISTRY_HOSTS + MACHINE_PATHS
    assert [where for where, line in lines_of_project() if any(name in line for name in forbidden)] == []


def test_nothing_is_marked_as_unfinished() -> None:
    assert [where for where, line in lines_of_project() if UNFINISHED.search(line)] == []


def test_the_changelog_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    # Before its release a version is the unreleased one; after, the newest heading below.
    assert len(headings) == 1 or headings[1] == sandfork.__version__


def test_every_name_a_module_exports_is_there() -> None:
    for module in modules():
        if "__all__" in module.text and not module.name.endswith("__main__"):
            loaded = importlib.import_module(module.name)
            assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == [], module.name


def test_the_lock_files_name_hashes_and_no_place_to_get_them_from() -> None:
    for path in ROOT.glob("requirements*.lock"):
        text = path.read_text()
        pins = re.findall(r"^[a-z0-9.-]+==", text, re.MULTILINE)
        assert pins, path
        assert "://" not in text, path
        assert "--index-url" not in text, path
        assert all("--hash=sha256:" in block for block in re.split(r"^(?=[a-z0-9.-]+==)", text, flags=re.MULTILINE)[1:])


def test_every_setting_is_used() -> None:
    text = "".join(module.text for module in modules() if ".serve" in module.name or ".cli" in module.name)
    unused = [key for key, entry, _ in entries(Config()) if not re.search(rf"\.{entry.name}\b", text)]
    assert [key for key in unused if not key.startswith("limits.")] == []


def test_the_script_lists_every_command_it_has() -> None:
    script = (ROOT / "dev").read_text()
    (body,) = re.findall(r"case \$command in\n(.*?)\n    esac", script, re.DOTALL)
    commands = {name for line in re.findall(r"^        ([a-z |]+)\)", body, re.MULTILINE) for name in line.split(" | ")}
    shown = subprocess.run([ROOT / "dev", "help"], capture_output=True, text=True, check=True).stdout
    assert len(commands) >= 10
    assert [name for name in commands if not re.search(rf"(\./dev |\|){name}\b", shown)] == []


def test_the_script_refuses_a_command_it_does_not_have() -> None:
    done = subprocess.run([ROOT / "dev", "sevre"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "unknown command: sevre" in done.stderr
