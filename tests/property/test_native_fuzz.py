"""The C code that reads what others wrote, under the compiler's sanitizers, over tens of thousands of inputs."""

from __future__ import annotations

import random
import resource
import struct
import subprocess
from pathlib import Path

import pytest

from sandfork.tiers.process import messages as m
from tests.support.process import PACKAGE

SOURCE = Path(__file__).with_name("fuzz_native.c")
SEED = 20_240_607
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


def compile_target(directory: Path, *flags: str) -> Path:
    """Compile the fuzz target with the sanitizers."""
    program = directory / "fuzz_native"
    argv = ["gcc", "-std=gnu11", "-O1", "-g", "-ffreestanding", "-fno-builtin", "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all", "-Wno-unused-function", *flags, "-I", str(PACKAGE / "native"),
            "-o", str(program), str(SOURCE)]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_target(tmp_path_factory.mktemp("fuzz"))


def limit_files() -> None:
    """Have a file end at a megabyte with an error; its signal is ignored, as Python does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def run(program: Path, inputs: list[bytes], *args: str) -> subprocess.CompletedProcess[str]:
    stream = b"".join(struct.pack("=I", len(each)) + each for each in inputs)
    # A file with holes may be told to be of any size, and would be read to its end.
    done = subprocess.run(
        [program, *args], input=stream, capture_output=True, env=ENVIRONMENT, check=False, timeout=60,
        restore_signals=False, preexec_fn=limit_files,
    )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def damage(rng: random.Random, data: bytes) -> bytes:
    """Return `data` with some bytes changed, cut out or put in; often unharmed."""
    damaged = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        at = rng.randrange(len(damaged) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(damaged):
            damaged[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 1:
            damaged[at : at + rng.randrange(9)] = b""
        elif kind == 2:
            damaged[at:at] = rng.randbytes(rng.randrange(9))
        else:
            damaged = damaged[:at]
    return bytes(damaged)


def some_text(rng: random.Random) -> str:
    return "".join(rng.choice("AB=ab/.\x01é") for _ in range(rng.randrange(12)))


def some_fields(rng: random.Random) -> bytes:
    texts = [m.text(rng.choice([b"a", b"e", b"f"]), some_text(rng)) for _ in range(rng.randrange(6))]
    return b"".join([*texts, m.number(b"n", rng.getrandbits(64)), m.field(b"c", rng.randbytes(rng.randrange(40)))])


PATHS = ["f", "d/f", "d", ".", "..", "../x", "/etc/passwd", "link", "link/x", "", "a" * 300, "d//f", "f/", "d/d/d/d/e"]


def some_requests(rng: random.Random) -> bytes:
    requests = []
    for _ in range(rng.randrange(1, 6)):
        kind = rng.choice(b"PGLFUQrwK?")
        number = rng.choice([0, 1, 0o644, 1 << 20, (1 << 48) - 1, rng.getrandbits(48)])
        content = rng.randbytes(rng.choice([0, 1, 8, 8, 100, 70_000]))
        requests.append(m.agent_request(kind, rng.choice(PATHS), number, content))
    return b"".join(requests)


def test_fields_of_any_bytes_stay_within_their_buffer(target: Path) -> None:
    rng = random.Random(SEED)
    inputs = [rng.randbytes(rng.randrange(64)) for _ in range(10_000)]
    inputs += [damage(rng, some_fields(rng)) for _ in range(30_000)]
    done = run(target, inputs, "fields")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("40000 inputs")


def test_more_strings_than_there_is_room_for_are_left_out(target: Path) -> None:
    many = b"".join(m.text(b"a", "") + m.text(b"e", f"{i}=") for i in range(5000))
    done = run(target, [many], "fields")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_agent_asked_anything_stays_within_its_buffers_and_its_directory(
    as_root: None, target: Path, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    work = tmp_path / "work"
    work.mkdir()
    (work / "link").symlink_to(tmp_path)
    (tmp_path / "canary").write_text("unharmed")
    inputs = [damage(rng, some_requests(rng)) for _ in range(600)]
    done = run(target, inputs, "agent", str(work))
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary", "work"]
    assert (tmp_path / "canary").read_text() == "unharmed"
    assert any(work.iterdir())


def test_the_sanitizers_see_a_byte_too_far(tmp_path: Path) -> None:
    program = compile_target(tmp_path, "-DFUZZ_ONE_TOO_FAR")
    done = run(program, [m.text(b"a", "x")], "fields")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
