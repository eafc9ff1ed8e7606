r"""A tier without isolation and without processes: programs are scripts that this package plays.

For tests of everything above the tier port, and for trying the service where sandboxes cannot be made. It keeps the
port's contract to the letter (the same suite runs over it and over the real tiers), so what works with it breaks only
where the kernel does.

A program is the step's code, or its second argv word when it has none (`["sh", "out hello"]`), one command a line:

    out TEXT       write TEXT and a newline to stdout; \n, \t and \\ are understood
    err TEXT       the same to stderr
    flood N        write N bytes to stdout, in chunks of 64 KiB
    show TEXT      show TEXT as a rich value, in a step that wants those
    cat            copy what is left of stdin to stdout, as it comes
    read           copy one line of stdin to stdout once it is there; at the end of stdin exit 1
    cat PATH       copy a file to stdout, or complain and exit 1
    write PATH TEXT, link PATH TARGET
    args, env NAME print argv after the first word, or a variable
    set NAME TEXT  keep TEXT under a name as long as the process lasts
    get NAME       print what is kept, or complain and exit 1
    size           print rows and columns of the process' terminal
    sleep S        seconds
    trap           heed no interrupt (SIGINT) from now on
    exit N         end the step; a lasting process takes the next one
    die N          exit the process, a lasting one too
    signal N       die by a signal
    limit OUTCOME  be stopped by the tier for a limit: out_of_memory, cpu_limit, ...
    lost           vanish without a word

A script that ends exits with 0; an unknown command complains and exits 127. An interrupt ends a lasting process' step
with 130; any other signal, and an interrupt of a process that does not last, is the end of the process. A `FakeTier`
given a `program` plays that coroutine function instead and takes what it returns for the exit code.

Steps: `fork` and `join` wait `fork_s` and park; `exec` plays the script on the caller's task; `kill`, `signal` and
`close` interrupt it wherever it waits. Needs nothing of the kernel.
"""

from sandfork.tiers.fake.files import FakeFiles
from sandfork.tiers.fake.guest import FakeGuest
from sandfork.tiers.fake.process import FakeProcess, Program
from sandfork.tiers.fake.sandbox import FakeSandbox
from sandfork.tiers.fake.script import play_script
from sandfork.tiers.fake.tier import FakeTemplate, FakeTier

__all__ = [
    "FakeFiles",
    "FakeGuest",
    "FakeProcess",
    "FakeSandbox",
    "FakeTemplate",
    "FakeTier",
    "Program",
    "play_script",
]
