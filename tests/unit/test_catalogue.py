"""The language catalogue: what is shipped, what a file may say, and what is refused."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandfork.images.rooted import Rooted
from sandfork.languages.catalogue import (
    COMMAND,
    Catalogue,
    CatalogueError,
    Language,
    TemplateKind,
    parse_language,
)
from sandfork.languages.checks import STANDARD
from sandfork.languages.draft import draft_language
from sandfork.languages.imports import SCAN_CHARS, compile_scan
from sandfork.languages.language import Check, Packages
from sandfork.model import LimitsOverride
from tests.support.languages import CHECKS

RUBY = f"""
name = "ruby"
aliases = ["rb"]
extension = ".rb"
file_name = "main.rb"
argv = ["/usr/bin/ruby", "{{file}}"]
{CHECKS}
[[template]]
key = "ruby"
kind = "park"
interpreter = "/usr/bin/ruby"
pool_weight = 0.5
"""

FORKING = RUBY.replace('kind = "park"', 'kind = "fork"')

HEX = "0123456789abcdef" * 4
C = """
name = "c"
extension = ".c"
file_name = "main.c"
argv = ["{out}", "-x"]
version = ["/usr/bin/gcc", "--version"]
needs = ["/usr/include/stdio.h"]
packages = { debian = ["gcc"], npm = ["@types/node@20"], pypi = ["ziglang==0.15.1"], pypi_files = ["hy==1 sha256:HEX"] }
env = { LC_ALL = "C.UTF-8" }
limits = { memory_bytes = "768m" }
[compile]
argv = ["/usr/bin/gcc", "-o", "{out}", "{name}"]
limits = { wall_s = 60, memory_bytes = "1g", pids = 128 }
[without]
argv = "it has no words"
[checks]
hello = { code = "1", stdin = "x", args = ["y"], stdout = "z" }
stdin = "2"
error = "4"
compile_error = "oh"
wall = "5"
memory = "6"
output = "7"
own = { code = "8", stdout = "9" }
""".replace("HEX", HEX)


def parse(text: str) -> Language:
    return parse_language("ruby.toml", tomllib.loads(text))


def started_for_each(text: str) -> str:
    """Return the file with a template of kind none."""
    return text.replace('"park"', '"none"').replace('interpreter = "/usr/bin/ruby"', "")


def test_a_language_that_is_started_for_each_program_can_say_what_keeps_the_state_of_a_session() -> None:
    assert parse(RUBY).session_argv == ()
    assert parse(f'session = ["/usr/bin/irb", "-f"]\n{started_for_each(RUBY)}').session_argv == ("/usr/bin/irb", "-f")


def test_the_shipped_languages_are_found_by_their_aliases_and_share_templates() -> None:
    catalogue = Catalogue.load()
    assert {"bash", "node", "python"} <= set(catalogue.names())
    for name, alias in (("python", "python3"), ("python", "py"), ("node", "javascript"), ("node", "js")):
        assert catalogue.find(alias) is catalogue.find(name) is not None
    assert {spec.key: spec.kind for spec in catalogue.templates() if not spec.replaceable} == {
        "command": TemplateKind.NONE,
        "node": TemplateKind.PARK,
        "python": TemplateKind.FORK,
        "python-numpy": TemplateKind.FORK,
    }


def test_an_interpreter_that_goes_on_after_a_fork_is_described_by_its_language() -> None:
    language = parse(f'env = {{ MODE = "x" }}\n{FORKING}fork_at = "open"\n')
    (spec,) = language.templates
    assert (spec.driven, spec.resident, language.lasts) == (False, False, False)
    assert (spec.start, spec.file_name, spec.env) == (language.argv, "main.rb", (("MODE", "x"),))
    assert language.choose_template("") is spec
    assert language.choose_template("", {spec.key: "it has threads"}).key == "command"
    started = parse(f'{FORKING}fork_at = "mark"\nstart = ["/usr/bin/ruby", "{{fork}}", "{{file}}"]\n')
    assert started.templates[0].start == ("/usr/bin/ruby", "{fork}", "{file}")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ('fork_at = "late"', "fork_at"),
        ('fork_at = "open"\npreload = ["json"]', "fork_at"),
        ('start = ["/usr/bin/ruby"]', "start"),
        ('driver = "fork.rb"', "driver"),
        ('fork_at = "fork"\ndriver = "../x.rb"', "driver"),
    ],
)
def test_what_does_not_describe_a_fork_is_refused(change: str, key: str) -> None:
    with pytest.raises(CatalogueError, match=f"template 1: {key}"):
        parse(f"{FORKING}{change}\n")


MADE_FOR = """
[[template]]
key = "vm"
kind = "fork"
interpreter = "/usr/bin/vm"
fork_at = "open"
pool_weight = 1.0
"""


def test_an_interpreter_forks_as_it_opens_what_was_compiled_for_it() -> None:
    (spec,) = parse(C.replace('["{out}", "-x"]', '["/usr/bin/vm", "{out}"]') + MADE_FOR).templates
    assert (spec.start, spec.file_name) == (("/usr/bin/vm", "{out}"), ".build/main")


def test_what_forks_is_told_which_artefact_is_its_program() -> None:
    several = C.replace("limits = { wall_s = 60", 'artefacts = ["*.vm"]\nlimits = { wall_s = 60')
    with pytest.raises(CatalogueError, match="the first of `artefacts` must be a path, no pattern"):
        parse(several + MADE_FOR)
    parse(several + MADE_FOR.replace('"fork"', '"park"').replace('fork_at = "open"', ""))


WAITING = RUBY.replace('"{file}"]', '"-m", "{memory_bytes}", "main", "{file}"]')


def test_a_jvm_that_waits_is_started_as_its_programs_are() -> None:
    text = f'{WAITING}park_at = "main"\nrehearsal = "1"\nboot_env = ["LC_*", "TZ"]\n'
    language = parse(text).sized(1 << 20)
    (spec,) = language.templates
    assert (spec.driven, spec.resident, spec.replaceable, language.lasts) == (False, False, True, False)
    assert (spec.start, spec.file_name, spec.rehearsal) == (language.argv, "main.rb", "1")
    assert language.session_template.key == "command"
    assert language.choose_template("", {spec.key: "no JDK"}).key == "command"


@pytest.mark.parametrize(
    ("memory_bytes", "env", "taken"),
    [
        (1 << 20, (), True),
        (1 << 20, ("TZX", "L", "HOME"), True),
        (1 << 21, (), False),
        (1 << 20, ("HOME", "TZ"), False),
        (1 << 20, ("LC_ALL",), False),
    ],
)
def test_one_that_waits_takes_what_it_was_told_at_its_start(
    memory_bytes: int, env: tuple[str, ...], taken: bool
) -> None:
    (spec,) = parse(f'{WAITING}park_at = "main"\nboot_env = ["LC_*", "TZ"]\n').sized(1 << 20).templates
    assert spec.takes(memory_bytes, env) is taken


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f'{WAITING}park_at = "nowhere"', "park_at"),
        (f'{WAITING}rehearsal = "1"', "rehearsal"),
        (f'{WAITING}boot_env = ["TZ"]', "boot_env"),
        (f'{WAITING}park_at = "main"\nboot_env = ["*"]', "boot_env"),
        (f'{FORKING}park_at = "{{file}}"', "park_at"),
    ],
)
def test_what_does_not_describe_one_that_waits_is_refused(text: str, key: str) -> None:
    with pytest.raises(CatalogueError, match=key):
        parse(f"{text}\n")


@pytest.mark.parametrize("name", ["", "Python", "python ", "python2", "command", "main.py"])
def test_a_language_is_found_by_its_exact_names_only(name: str) -> None:
    assert Catalogue.load().find(name) is None


def test_a_directory_of_ones_own_replaces_the_shipped_languages(tmp_path: Path) -> None:
    (tmp_path / "ruby.toml").write_text(RUBY)
    catalogue = Catalogue.load(tmp_path)
    assert catalogue.names() == ("ruby",)
    assert catalogue.templates()[0] == COMMAND


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t + "colour = 1", "ruby.toml, template 1: colour: unknown key"),
        (lambda t: "colour = 1\n" + t, "ruby.toml: colour: unknown key"),
        (lambda t: t.replace('name = "ruby"', "", 1), "ruby.toml: name: is missing"),
        (lambda t: t.replace('name = "ruby"', "name = 1", 1), "ruby.toml: name: must be a string"),
        (lambda t: t.replace('name = "ruby"', 'name = "Ruby!"', 1), "ruby.toml: name: 'Ruby!' does not match"),
        (lambda t: t.replace('["rb"]', '"rb"'), "ruby.toml: aliases: must be a list"),
        (lambda t: t.replace('["rb"]', '["rb", 1]'), "ruby.toml: aliases: must be a list"),
        (lambda t: t.replace('".rb"', '"rb"'), "ruby.toml: extension:"),
        (lambda t: "takes_extension = 1\n" + t, "ruby.toml: takes_extension: must be true or false"),
        (lambda t: t.replace('"main.rb"', '"../main.rb"'), "ruby.toml: file_name:"),
        (lambda t: t.replace('"/usr/bin/ruby", "{file}"', '"ruby", "{file}"'), "ruby.toml: argv:"),
        (lambda t: t.replace('"/usr/bin/ruby", "{file}"', '"/usr/bin/ruby"'), "ruby.toml: argv:"),
        (lambda t: t.replace('"{file}"', '"-f{file}"'), "ruby.toml: argv:"),
        (lambda t: t.replace('"{file}"', '"{file}", "-f{out}"'), "ruby.toml: argv: '{out}' must be a word of its own"),
        (lambda t: t.replace('"/usr/bin/ruby", "{file}"', '"{out}", "{file}"'), "ruby.toml: argv:"),
        (lambda t: t.replace('kind = "park"', 'kind = "boil"'), "ruby.toml, template 1: kind: must be one of"),
        (lambda t: t.replace('"park"', '"none"'), "ruby.toml, template 1: interpreter: a template of kind none"),
        (lambda t: t.replace('interpreter = "/usr/bin/ruby"', ""), "ruby.toml, template 1: interpreter:"),
        (lambda t: t + 'preload = ["json"]', "ruby.toml, template 1: preload: only a template of kind fork"),
        (lambda t: t + 'imports = ["a b"]', "ruby.toml, template 1: imports: 'a b' does not match"),
        (lambda t: t + 'imports = ["json"]', "ruby.toml: template: needs a default first"),
        (lambda t: t.replace("0.5", "-1"), "ruby.toml, template 1: pool_weight:"),
        (lambda t: t.replace("0.5", "true"), "ruby.toml, template 1: pool_weight:"),
        (lambda t: t.replace("0.5", "nan"), "ruby.toml, template 1: pool_weight:"),
        (lambda t: t + t[t.index("[[") :], "ruby.toml: template: a key is there twice"),
        (lambda t: t.replace('hello = "1"', ""), "ruby.toml, checks: hello: is missing, and not excused"),
        (lambda t: t.replace('hello = "1"', "hello = 1"), "ruby.toml, checks: hello: must be a string"),
        (lambda t: t.replace('hello = "1"', 'hello = { text = "1" }'), "ruby.toml, checks, hello: text: unknown key"),
        (lambda t: t.replace('hello = "1"', 'hello = { stdin = "1" }'), "ruby.toml, checks, hello: code: is missing"),
        (
            lambda t: t.replace('hello = "1"', 'hello = "1"\nmine = "2"'),
            "ruby.toml, checks: mine: a check of one's own",
        ),
        (lambda t: 'without = { hello = "" }\n' + t.replace('hello = "1"', ""), "ruby.toml, without: hello: must be"),
        (lambda t: 'without = { hello = "no" }\n' + t, "ruby.toml, checks: hello: is there, and excused"),
        (lambda t: 'without = { compile_error = "no" }\n' + t, "ruby.toml, without: compile_error: must be one of"),
        (lambda t: 'packages = { debian = ["-o"] }\n' + t, "ruby.toml, packages: debian: '-o' does not match"),
        (
            lambda t: 'packages = { pypi_files = ["hy==1.3.1"] }\n' + t,
            "ruby.toml, packages: pypi_files: 'hy==1.3.1' does not match",
        ),
        (lambda t: 'packages = { cargo = ["x"] }\n' + t, "ruby.toml, packages: cargo: unknown key"),
        (
            lambda t: 'limits = { memory_bytes = "much" }\n' + t,
            "ruby.toml, limits: memory_bytes: must be a whole number",
        ),
        (lambda t: "limits = { wall_s = 0 }\n" + t, "ruby.toml, limits: wall_s: must be a number from 0.1"),
        (lambda t: "limits = { colour = 1 }\n" + t, "ruby.toml, limits: colour: unknown key"),
        (lambda t: "limits = 5\n" + t, "ruby.toml: limits: must be a table"),
        (lambda t: 'env = { "A B" = "x" }\n' + t, "ruby.toml, env: A B: 'A B' does not match"),
        (lambda t: 'needs = ["stdio.h"]\n' + t, "ruby.toml: needs: 'stdio.h' does not match"),
        (lambda t: 'compile = { argv = ["gcc", "{name}"] }\n' + t, "ruby.toml, compile: argv: must start with"),
        (lambda t: 'compile = { argv = ["/usr/bin/gcc"] }\n' + t, "ruby.toml, compile: argv: must start with"),
        (
            lambda t: 'compile = { argv = ["/bin/x", "{name}"], artefacts = ["/x"] }\n' + t,
            "ruby.toml, compile: artefacts:",
        ),
        (
            lambda t: 'session = ["/usr/bin/irb"]\n' + t,
            "ruby.toml: session: the interpreter of a template of kind park",
        ),
        (lambda t: f'session = ["irb"]\n{started_for_each(t)}', "ruby.toml: session: must start with an absolute path"),
        (lambda t: f"session = [1]\n{started_for_each(t)}", "ruby.toml: session: must be a list of strings"),
        (lambda t: t[: t.index("[[")] + "[template]", "ruby.toml: template: must be a list of tables"),
    ],
)
def test_a_wrong_file_is_refused_naming_the_file_and_the_key(change: Callable[[str], str], complaint: str) -> None:
    parse(RUBY)
    with pytest.raises(CatalogueError) as caught:
        parse(change(RUBY))
    assert str(caught.value).startswith(complaint)


def test_a_compiled_language_says_how_it_is_made_and_what_that_may_take() -> None:
    language = parse_language("c.toml", tomllib.loads(C))
    assert language.compile is not None
    assert language.compile.argv == ("/usr/bin/gcc", "-o", "{out}", "{name}")
    assert language.compile.artefacts == (".build/main",)
    assert language.compile.limits == LimitsOverride(wall_s=60.0, memory_bytes=1 << 30, pids=128)
    assert language.limits == LimitsOverride(memory_bytes=768 << 20)
    assert language.templates == (COMMAND,)
    assert language.packages == Packages(("gcc",), ("@types/node@20",), ("ziglang==0.15.1",), (f"hy==1 sha256:{HEX}",))
    assert language.without == (("argv", "it has no words"),)
    assert language.checks[0] == Check("hello", "1", "x", ("y",), "z")


def test_a_compiled_language_needs_its_compiler_and_what_it_names() -> None:
    language = parse_language("c.toml", tomllib.loads(C))
    assert language.programs == ("/usr/bin/gcc", "/usr/include/stdio.h")
    assert language.missing(lambda path: path == "/usr/bin/gcc") == ("/usr/include/stdio.h",)
    assert language.installed(lambda path: True)


def test_what_the_path_of_has_a_machine_or_a_version_in_it_is_needed_by_pattern(tmp_path: Path) -> None:
    language = Catalogue.load().find("objc")
    assert language is not None
    rooted = Rooted(str(tmp_path))
    for path in ("usr/bin/gcc", "usr/include/stdio.h"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert language.missing(rooted.has) == ("/usr/lib*/gcc/*/*/cc1obj",)
    compiler = tmp_path / "usr/libexec/gcc/aarch64-linux-gnu/14/cc1obj"
    compiler.parent.mkdir(parents=True)
    compiler.touch()
    assert language.installed(rooted.has)


def test_no_language_shipped_names_a_machine_or_a_version_of_gcc_in_a_path() -> None:
    for language in Catalogue.load().languages():
        paths = [path for path in language.programs if "x86_64" in path or "aarch64" in path or "/gcc/1" in path]
        assert not paths, language.name


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("node", "nodejs javascript"), ("typescript", "ts"), ("csharp", "dotnet"), ("nasm", "asm"), ("bash", "bash"),
        ("postgresql", "postgres"), ("mysql", "mariadb"), ("bun", "bun"), ("deno", "deno"), ("lisp", "lisp"),
        ("scheme", "scheme"), ("r", "r"), ("octave", "octave"), ("cobol", "cobol"), ("crystal", "crystal"), ("d", "d"),
    ],
)  # fmt: skip
def test_a_language_is_found_by_the_names_that_other_services_give_it(name: str, spellings: str) -> None:
    for spelling in spellings.split():
        found = Catalogue.load().find(spelling)
        assert found is not None, spelling
        assert found.name == name


def test_a_language_that_a_shell_starts_names_what_it_needs() -> None:
    for language in Catalogue.load().languages():
        firsts = [language.argv[0]] + ([language.compile.argv[0]] if language.compile else [])
        if {"/bin/sh", "/usr/bin/env"}.intersection(firsts) and language.name not in ("sh", "dash"):
            assert language.needs, language.name


def test_every_language_shipped_is_proven_by_every_check_it_does_not_excuse() -> None:
    for language in Catalogue.load().languages():
        wanted = {name for name, each in STANDARD.items() if language.compile or not each.of_compilers}
        assert {check.name for check in language.checks} | {name for name, _ in language.without} >= wanted
        assert language.packages.debian or language.packages.npm or language.packages.pypi, language.name


def test_a_draft_is_a_language_that_the_catalogue_takes() -> None:
    assert parse_language("zig.toml", tomllib.loads(draft_language("zig"))).name == "zig"


@pytest.mark.parametrize("name", ["", "Zig", 'z"', "z\n", "../z", "z" * 40])
def test_a_draft_of_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(CatalogueError):
        draft_language(name)


def test_a_file_that_is_no_toml_is_refused_naming_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(CatalogueError, match=r"broken\.toml"):
        Catalogue.load(tmp_path)


def test_a_name_taken_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(RUBY)
    (tmp_path / "b.toml").write_text(RUBY.replace('name = "ruby"', 'name = "jruby"', 1))
    with pytest.raises(CatalogueError, match="'rb' already means"):
        Catalogue.load(tmp_path)


def test_an_extension_of_several_languages_is_that_of_the_one_that_takes_it(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(RUBY)
    (tmp_path / "b.toml").write_text(RUBY.replace('"ruby"', '"jruby"').replace('["rb"]', "[]"))
    names = [each.name for each in Catalogue.load(tmp_path).with_extension(".rb")]
    assert names == ["jruby", "ruby"]
    (tmp_path / "a.toml").write_text("takes_extension = true\n" + RUBY)
    assert [each.name for each in Catalogue.load(tmp_path).with_extension(".rb")] == ["ruby"]
    assert Catalogue.load(tmp_path).with_extension(".py") == ()
    taken = (tmp_path / "b.toml").read_text()
    (tmp_path / "b.toml").write_text("takes_extension = true\n" + taken)
    with pytest.raises(CatalogueError, match=r"\.rb is (jruby|ruby)'s already"):
        Catalogue.load(tmp_path)


def test_a_template_described_in_two_ways_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(RUBY)
    other = RUBY.replace('name = "ruby"', 'name = "jruby"', 1).replace('["rb"]', "[]").replace("0.5", "0.25")
    (tmp_path / "b.toml").write_text(other)
    with pytest.raises(CatalogueError, match="template 'ruby' is described differently"):
        Catalogue.load(tmp_path)


def test_a_language_is_installed_when_every_interpreter_it_names_is_there() -> None:
    node = Catalogue.load().find("node")
    assert node is not None
    assert node.installed(lambda path: path == "/usr/bin/node")
    assert not node.installed(lambda path: False)


def test_only_keeps_the_languages_asked_for_and_the_command_template() -> None:
    catalogue = Catalogue.load().only(lambda language: language.name == "node")
    assert catalogue.names() == ("node",)
    assert [spec.key for spec in catalogue.templates()] == ["command", "node"]


@pytest.mark.parametrize(("size", "targets"), [(0, (0, 0)), (1, (1, 1)), (8, (8, 2)), (100, (100, 25))])
def test_pool_targets_follow_the_weights_and_are_never_rounded_to_nothing(size: int, targets: tuple[int, int]) -> None:
    python = Catalogue.load().find("python")
    assert python is not None
    assert tuple(spec.pool_target(size) for spec in python.templates) == targets


IMPORTING = [
    "import numpy",
    "import numpy as np",
    "import os, numpy",
    "import os as o , sys,numpy as np",
    "from numpy import array",
    "from numpy.random import rand",
    "import numpy.random",
    "import pandas",
    "x = 1; import numpy",
    "if x: import numpy",
    "try:\n\timport numpy\nexcept ImportError: pass",
    "import numpy\r\nprint(1)",
    "import json\nimport numpy",
    "import numpy# yes",
]
NOT_IMPORTING = [
    "",
    "print('numpy')",
    "# import it: numpy",
    "numpy = 1",
    "import numpyx",
    "import xnumpy",
    "import numpy_financial",
    "from a import numpy",
    "reimport numpy",
    "import a.numpy",
]


@pytest.mark.parametrize("code", IMPORTING)
def test_an_import_statement_chooses_the_template_that_has_the_module_ready(code: str) -> None:
    python = Catalogue.load().find("python")
    assert python is not None
    assert python.choose_template(code).key == "python-numpy"


@pytest.mark.parametrize("code", NOT_IMPORTING)
def test_a_program_that_does_not_import_it_runs_in_the_default_template(code: str) -> None:
    python = Catalogue.load().find("python")
    assert python is not None
    assert python.choose_template(code).key == "python"


def test_a_template_that_cannot_be_made_is_passed_over() -> None:
    python = Catalogue.load().find("python")
    assert python is not None
    assert python.choose_template("import numpy", {"python-numpy": "no numpy"}).key == "python"
    assert python.choose_template("import numpy", {"python": "no python"}).key == "python-numpy"
    assert python.choose_template("print(1)", {"python": "no python"}).key == "python"


def test_what_a_compiler_has_every_program_import_chooses_the_template_too() -> None:
    coconut = Catalogue.load().find("coconut")
    assert coconut is not None
    assert coconut.choose_template("print(1)").key == "python-numpy"
    assert coconut.choose_template("print(1)", {"python-numpy": "no numpy"}).key == "python"
    without = replace(coconut, compile=coconut.compile and replace(coconut.compile, imports=()))
    assert without.choose_template("print(1)").key == "python"


def test_only_the_beginning_of_a_program_is_scanned() -> None:
    scan = compile_scan(["numpy"])
    assert scan("#" * (SCAN_CHARS - 20) + "\nimport numpy")
    assert not scan("#" * SCAN_CHARS + "\nimport numpy")


@given(st.text(alphabet="import numpyasfrom.,;:\n\t#x\\", max_size=200))
@example("import " + "a," * 5000 + " numpy")
def test_the_scan_takes_any_text(code: str) -> None:
    assert compile_scan(["numpy", "pandas"])(code) in (True, False)


def test_a_template_keeps_its_key_where_the_language_is_that_it_is_called_after() -> None:
    """What a pool's size, a request and a snapshot name is the same, wherever others are that use it, too."""
    catalogue = Catalogue.load().on_images({"python": "py@sha256:1"})
    keys = {
        name: [(spec.key, spec.image, spec.displaced) for spec in language.templates]
        for name in ("python", "coconut", "node", "typescript")
        if (language := catalogue.find(name)) is not None
    }
    assert keys["python"] == [("python", "py@sha256:1", False), ("python-numpy", "py@sha256:1", False)]
    assert keys["coconut"] == [("python@/", "", True), ("python-numpy@/", "", True)]
    assert keys["node"] == keys["typescript"] == [("node", "", False)]
    moved = Catalogue.load().on_images({"typescript": "ts@sha256:2"}).find("typescript")
    assert moved is not None
    assert [(spec.key, spec.image) for spec in moved.templates] == [("node@ts", "ts@sha256:2")]
