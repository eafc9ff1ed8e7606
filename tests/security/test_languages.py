"""Attempts that take a language: bombs for compilers, switches of runtimes, and what their forks carry over.

Each language has the control that its own first check, in its own file, runs where its attempts fail.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from sandfork.images.rooted import Rooted
from sandfork.languages.catalogue import Catalogue
from tests.security.attempts import run_unconfined
from tests.security.conftest import ENVIRONMENT, SECRET
from tests.support.service import Service

MIB = 1 << 20
RUNS = 21  # 210 pairs
#: What a language's compiler gets where its file says no more.
LEAST = 512 * MIB
CATALOGUE = Catalogue.load()


def installed(name: str) -> None:
    """Skip, by name, what this host has no toolchain for. CI has C, C++, TypeScript, Perl, Lua and Tcl."""
    language = CATALOGUE.find(name)
    assert language is not None
    if missing := language.missing(Rooted().has):
        pytest.skip(f"{name}: there is no {missing[0]}: sandfork lang install {name}")


# --- compilers ---


@dataclass(frozen=True)
class Bomb:
    """A program that is not to be compiled. SETTINGS in it is the path of the service's settings."""

    language: str
    code: str


BOMBS = {
    "C: a file without end": Bomb("c", '#include "/dev/zero"\nint main(void) {}'),
    "C: bytes without end": Bomb("c", '__asm__(".incbin \\"/dev/zero\\",0,0x7fffffffff");int main(void) {}'),
    "C: the settings as bytes": Bomb("c", '__asm__(".incbin \\"SETTINGS\\"");int main(void) {}'),
    "C: an assembler that repeats": Bomb("c", '__asm__(".rept 1000000000\\n.long 1\\n.endr");int main(void) {}'),
    "C: more than a disk": Bomb("c", '__asm__(".data\\n.fill 0x7fffffff,8,1");int main(void) {}'),
    "C++: templates in templates": Bomb(
        "cpp", "template<int N> struct X { static constexpr int v = X<N + 1>::v; }; int main() { return X<0>::v; }"
    ),
    "C++: templates that double": Bomb(
        "cpp",
        "template<int N, class... A> struct X { using t = typename X<N - 1, A..., A...>::t; };"
        "template<class... A> struct X<0, A...> { using t = int; }; X<40, int>::t x; int main() {}",
    ),
    "C++: a file without end": Bomb("cpp", '#include "/dev/zero"\nint main() {}'),
    "C++: the settings as a header": Bomb("cpp", '#include "SETTINGS"\nint main() {}'),
    "TypeScript: types that double": Bomb(
        "typescript",
        "type R<N extends string> = N extends `${infer H}${infer T}` ? `${R<T>}${R<T>}` : 'q';"
        f"let c: R<'{'a' * 31}'> = 1;",
    ),
    "TypeScript: the settings": Bomb("typescript", '/// <reference path="SETTINGS" />\nlet n: number = "x";'),
    "Go: constants that double": Bomb(
        "go",
        f"package main\nconst b0 = `{'x' * 1000}`\n"
        + "".join(f"const b{n} = b{n - 1} + b{n - 1}\n" for n in range(1, 31))
        + "func main() { println(b30) }",
    ),
    "Go: an array of eight gigabytes": Bomb(
        "go", "package main\nvar a = [1 << 33]byte{1<<33 - 1: 1}\nfunc main() { println(a[1]) }"
    ),
    "Rust: macros that double": Bomb(
        "rust", "macro_rules! b { ($($t:tt)*) => { b!{$($t)* $($t)*} } }\nfn main() { b!{a b} }"
    ),
    "Rust: a file without end": Bomb(
        "rust", 'fn main() { println!("{}", include_bytes!("/dev/zero").len()); }'
    ),
    "Rust: the settings as text": Bomb("rust", 'fn main() { print!("{}", include_str!("SETTINGS")); }'),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_for_a_languages_compiler_goes_off_inside_its_sandbox(name: str, service: Service) -> None:
    bomb = BOMBS[name]
    installed(bomb.language)
    language = CATALOGUE.find(bomb.language)
    assert language is not None
    assert language.compile is not None
    reply = service.exec(bomb.code.replace("SETTINGS", str(service.log.parent / "settings.toml")), bomb.language)
    assert reply["failed_step"] == "compile", reply
    assert reply["outcome"] != "exited" or reply["exit_code"] != 0
    assert SECRET not in json.dumps(reply)
    allowed = language.compile.limits.memory_bytes or LEAST
    assert isinstance(allowed, int)
    assert (
        reply["usage"]["memory_peak_bytes"] <= allowed + MIB
    )  # the kernel lets a charge or two pass before it ends them
    hello = next(check for check in language.checks if check.name == "hello")
    assert service.exec(hello.code, bomb.language)["exit_code"] == 0, "the control"


# --- runtimes ---

HEAP = """
class Main {
    public static void main(String[] words) {
        System.out.println(Runtime.getRuntime().maxMemory() >> 20);
        System.out.flush();
        var all = new java.util.ArrayList<byte[]>();
        while (System.getenv("TAKE") != null) {
            var more = new byte[1 << 20];
            java.util.Arrays.fill(more, (byte) 1);
            all.add(more);
        }
    }
}
"""


@pytest.mark.parametrize("variable", ["JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS"])
def test_a_heap_that_is_asked_for_is_no_more_than_the_limit(variable: str, service: Service) -> None:
    """The variable is obeyed, which is the control, and the sandbox's limit holds all the same."""
    installed("java")
    limits, asked = {"memory_bytes": 256 * MIB}, {variable: "-Xmx64g -XX:MaxRAM=128g"}
    told = service.exec(HEAP, "java", env=asked, limits=limits)
    taken = service.exec(HEAP, "java", env={**asked, "TAKE": "1"}, limits=limits)
    assert int(told["stdout"]) > 60 << 10, told
    assert taken["outcome"] == "out_of_memory", taken
    assert taken["usage"]["memory_peak_bytes"] <= 256 * MIB
    at_once = service.exec(HEAP, "java", env={variable: "-Xms8g -Xmx8g -XX:+AlwaysPreTouch"}, limits=limits)
    assert at_once["exit_code"] != 0
    assert at_once["usage"]["memory_peak_bytes"] <= 256 * MIB


HOSTILE: dict[str, tuple[str, dict[str, str]]] = {
    "perl": ("print `id -u`", {"PERL5OPT": "-Mevil", "PERL5LIB": "/sandbox", "PERL5DB": "BEGIN { system 'id' }"}),
    "lua": ("print(io.popen('id -u'):read('a'))", {"LUA_INIT": "print(io.popen('id -u'):read('a'))"}),
    "ruby": ("puts `id -u`", {"RUBYOPT": "-r/sandbox/evil", "RUBYLIB": "/sandbox"}),
    "php": ("<?php echo `id -u`;", {"PHPRC": "/sandbox", "PHP_INI_SCAN_DIR": "/sandbox"}),
    "tcl": ("puts [exec id -u]", {"TCLLIBPATH": "/sandbox", "TCL_LIBRARY": "/sandbox"}),
    "r": ("cat(system('id -u', intern = TRUE))", {"R_PROFILE_USER": "/sandbox/evil", "R_LIBS": "/sandbox"}),
    "prolog": (":- initialization((shell('id -u'))).", {"SWI_HOME_DIR": "/sandbox"}),
}
#: How such a zygote is started; a program that repeats it starts nothing but itself.
OURS = {"LD_PRELOAD": "/proc/self/fd/6", "LD_BIND_NOW": "1", "SANDFORK_FORK": "open /sandbox/main.pl /usr/bin/perl x"}


@pytest.mark.parametrize("language", HOSTILE)
def test_variables_that_an_interpreter_obeys_do_harm_only_inside(language: str, service: Service) -> None:
    installed(language)
    code, variables = HOSTILE[language]
    files = dict.fromkeys(("evil", "evil.pm", "evil.rb", "php.ini"), "system('id -u')")
    for env in (variables, OURS, {**variables, **OURS}):
        reply = service.exec(code, language, env=env, files=files)
        assert SECRET not in json.dumps(reply)
        assert not {"0", "uid=0(root)"} & set(reply["stdout"].split()), reply
    plain = service.exec(code, language)
    assert plain["stdout"].split() == ["1000"], plain


# --- what forks carry over ---

RANDOM = {
    "perl": "use List::Util 'shuffle'; print join ' ', rand, int rand 2 ** 31, join('-', shuffle 1 .. 40), srand;",
    "lua": "io.write(math.random(), ' ', math.random(0), ' ', math.random(1 << 60), ' ', os.tmpname())",
    "tcl": "puts [list [expr {rand()}] [expr {rand()}]]",
    "ruby": "require 'securerandom'; puts [rand, Random.new.rand, Random.new_seed, Random.rand(1 << 60),"
    " SecureRandom.hex(8), Random.bytes(8).unpack1('H*'), (1..40).to_a.shuffle.join('-')].join(' ')",
    "php": "<?php $a = range(1, 40); shuffle($a); echo implode(' ', [mt_rand(), rand(), random_int(0, PHP_INT_MAX),"
    " bin2hex(random_bytes(8)), uniqid('', true), lcg_value(), implode('-', $a),"
    " str_shuffle('abcdefghijklmnopqrst')]);",
    "r": "cat(runif(1), sample.int(.Machine$integer.max, 1), rnorm(1), paste(sample(40), collapse = '-'),"
    " basename(tempfile()))",
    "prolog": ":- initialization(main). main :- X is random_float, Y is random(1 << 60),"
    " random_between(1, 1000000000000, Z), numlist(1, 40, L),"
    " random_permutation(L, P), atomic_list_concat(P, '-', S), "
    "maplist([E]>>(write(E), write(' ')), [X, Y, Z, S]).",
}  # fmt: skip
#: With a seed all draw the same: what differs above is the seed that each child took, and not something else.
SEEDED = {
    "perl": "srand 7; print rand;",
    "lua": "math.randomseed(7) print(math.random())",
    "tcl": "expr srand(7); puts [expr rand()]",
    "ruby": "srand 7; puts rand",
    "php": "<?php mt_srand(7); echo mt_rand();",
    "r": "set.seed(7); cat(runif(1))",
    "prolog": ":- initialization(main). main :- set_random(seed(7)), X is random_float, print(X).",
}


def run_often(service: Service, language: str, code: str) -> list[list[str]]:
    """Run a program in many sandboxes, several at a time, and return the words that each wrote."""
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: service.exec(code, language), range(RUNS)))
    assert {reply["exit_code"] for reply in replies} == {0}, replies[0]
    return [reply["stdout"].split() for reply in replies]


@pytest.mark.parametrize("language", RANDOM)
def test_no_two_forks_of_any_interpreter_draw_the_same_random_number(language: str, service: Service) -> None:
    installed(language)
    draws = run_often(service, language, RANDOM[language])
    assert all(draws)
    for one, other in combinations(draws, 2):
        assert not set(one) & set(other)
    with service.client as client:
        template = client.get("/v1/health").json()["templates"][language]
    assert template["ready"], "they were executed and not forked"
    seeded = run_often(service, language, SEEDED[language])
    assert len({tuple(words) for words in seeded}) == 1, "the control"


def test_an_interpreter_that_drew_before_its_fork_repeats_itself(tmp_path: Path) -> None:
    """The control of what forks share."""
    code = "rand; for (1, 2) { my $pid = fork; if (!$pid) { print rand, qq(\\n); exit } waitpid $pid, 0 }"
    first, second = run_unconfined(tmp_path, ["perl", "-e", code]).stdout.split()
    assert first == second


SCAN = r"""
my $marker = reverse(<STDIN> // $ENV{MARKER}); my $found = 0;
open my $maps, '<', '/proc/self/maps'; open my $memory, '<:raw', '/proc/self/mem';
while (<$maps>) {
    my ($from, $to, $rights) = /^(\w+)-(\w+) (\S+)/; next if $rights !~ /r/ or /\[v/;
    sysseek $memory, hex $from, 0; my $text; next unless sysread $memory, $text, hex($to) - hex($from);
    my ($start, $end) = (substr($marker, 0, 6), substr $marker, 6);
    $found++ while $text =~ /\Q$start\E(?=\Q$end\E)/g;
}
print $found;
"""


def test_the_memory_of_an_interpreters_fork_holds_no_secret_and_nothing_of_another(service: Service) -> None:
    installed("perl")
    earlier = "earlier-tenant-9d2f"
    for _ in range(3):
        service.exec(f"# {earlier}\nmy $kept = '{earlier}'; print <STDIN>, $kept;", "perl", stdin=earlier)
    own = 8  # at most: the marker itself, its parts, and what they were made from
    for marker in (SECRET, earlier):
        reply = service.exec(SCAN, "perl", stdin=marker[::-1])
        assert reply["exit_code"] == 0, reply
        assert int(reply["stdout"]) <= own
    planted = {**ENVIRONMENT, **{f"PLANTED{n}": f"{SECRET}-{n}" for n in range(40)}, "MARKER": SECRET[::-1]}
    argv = ["perl", "-e", SCAN]
    control = subprocess.run(argv, env=planted, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert int(control.stdout) > own


OPEN = r"""
opendir my $fds, '/proc/self/fd'; my @open = sort { $a <=> $b } grep /\d/, readdir $fds;
my @told;
for my $fd (grep { $_ != 63 } 3 .. 1023) {
    push @told, $fd if open my $to, '>&=', $fd and defined syswrite $to, "E\0\0\0\x18\0\0\0" . "\0" x 24;
}
print "@open / @told";
"""


FORGED_END = r"""
$| = 1; print "said";
open my $to, '>&=', 63; syswrite $to, "E\0\0\0\x18\0\0\0" . "\x05\0\0\0" . "\0" x 20;
sleep 1 while 1;
"""


def test_an_interpreters_fork_has_nothing_open_that_its_template_spoke_on(service: Service) -> None:
    """Neither orders nor reports: it forges an end on each number but its own control socket's. The listing is at 3."""
    installed("perl")
    for fields in ({}, {"files": {"f": "x"}}):
        reply = service.exec(OPEN, "perl", **fields)
        assert (reply["stdout"], reply["outcome"], reply["exit_code"]) == ("0 1 2 3 63 / ", "exited", 0), reply
    python = service.exec("import os; print(os.fstat(63).st_mode >> 12)")
    assert python["stdout"] == "12\n", "the control: where there is a control socket it is seen"


def test_an_end_that_an_interpreters_fork_forges_harms_only_its_own_answer(service: Service) -> None:
    installed("perl")
    for _ in range(3):
        forged = service.exec(FORGED_END, "perl")
        assert (forged["stdout"], forged["outcome"], forged["exit_code"]) == ("said", "exited", 5), forged
        honest = service.exec("print 'done'; exit 3", "perl")
        assert (honest["stdout"], honest["outcome"], honest["exit_code"]) == ("done", "exited", 3), honest
