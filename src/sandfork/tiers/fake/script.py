"""The player of scripts; see the package for the commands."""

from __future__ import annotations

from sandfork.errors import GuestLost
from sandfork.model import Outcome, Stream
from sandfork.tiers.fake.files import absolute_path
from sandfork.tiers.fake.process import FakeProcess, Stopped

CHUNK_BYTES = 64 << 10


async def play_script(process: FakeProcess) -> int:
    """Play the step's text."""
    step = process.step
    text = step.code.decode() if step.code is not None else "\n".join(step.argv[1:2])
    for line in text.splitlines():
        command, _, rest = line.strip().partition(" ")
        played = not command or await _speak(process, command, rest) or await _act(process, command, rest)
        if not played and not _end(process, command, rest):
            await process.write(f"{command}: command not found\n".encode(), Stream.STDERR)
            return 127
    return 0


async def _speak(process: FakeProcess, command: str, rest: str) -> bool:
    """Play a line that writes; False when it is another."""
    match command:
        case "out" | "err":
            await process.write(_unescape(rest) + b"\n", Stream.STDOUT if command == "out" else Stream.STDERR)
        case "flood":
            for start in range(0, int(rest), CHUNK_BYTES):
                await process.write(b"x" * min(int(rest) - start, CHUNK_BYTES))
        case "show":
            process.show(rest)
        case "args":
            await process.write(" ".join(process.step.argv[1:]).encode() + b"\n")
        case "env":
            await process.write(dict(process.step.env).get(rest, "").encode() + b"\n")
        case "get":
            await _write_or_complain(process, f"get: {rest}: not set", process.guest.kept.get(rest))
        case "size":
            cols, rows = process.guest.terminal or (0, 0)
            await process.write(f"{rows} {cols}\n".encode())
        case _:
            return False
    return True


async def _act(process: FakeProcess, command: str, rest: str) -> bool:
    """Play a line that reads, keeps or waits; False when it is another."""
    word, _, text = rest.partition(" ")
    match command:
        case "cat" if rest:
            found = process.contents.get(absolute_path(rest))
            await _write_or_complain(process, f"cat: {rest}: No such file or directory", found)
        case "cat":
            while data := await process.read():
                await process.write(data)
        case "read":
            await _write_or_complain(process, "", await process.read_line() or None)
        case "write":
            process.contents[absolute_path(word)] = _unescape(text)
        case "link":
            process.contents[absolute_path(word)] = None
        case "set":
            process.guest.kept[word] = _unescape(text) + b"\n"
        case "sleep":
            await process.sleep(float(rest))
        case "trap":
            process.guest.trapped = True
        case _:
            return False
    return True


def _end(process: FakeProcess, command: str, rest: str) -> bool:
    """Play a line that ends the step; False when it is another."""
    match command:
        case "exit":
            raise Stopped(Outcome.EXITED, int(rest), dead=False)
        case "die":
            raise Stopped(Outcome.EXITED, int(rest), dead=True)
        case "signal":
            raise Stopped(Outcome.SIGNALLED, None, int(rest), dead=True)
        case "limit":
            process.guest.kill(Outcome(rest))
            process.guest.check()
        case "lost":
            raise GuestLost("the fake program vanished")
    return False


async def _write_or_complain(process: FakeProcess, complaint: str, content: bytes | None) -> None:
    """Write what was found; when nothing was, complain and exit 1."""
    if content is None:
        await process.write(f"{complaint}\n".encode() if complaint else b"", Stream.STDERR)
        raise Stopped(Outcome.EXITED, 1, dead=False)
    await process.write(content)


def _unescape(text: str) -> bytes:
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t").replace("\0", "\\").encode()
