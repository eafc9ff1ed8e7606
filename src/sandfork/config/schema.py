"""Every setting of the service: its name, type, default, range and meaning.

A section of the TOML file is a dataclass here, a key is a field. Units are in the names; a `_bytes` key takes an
integer or a size such as "512m". A 0 documented as automatic is replaced from the machine's cores and memory
(`sandfork.config.sizing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1 << 30
MIB = 1 << 20
KIB = 1 << 10

ALL_DIALECTS = "all"
DIALECT_PORTS = {"isol8": 3000}
DEFAULT_PORT = 8080


def setting(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    zero: str = "",
    secret: bool = False,
) -> Any:
    """Declare a key: its default, its documentation and what values it takes.

    `zero` says what 0 (and only 0 below `low`) means, such as "automatic": chosen from the machine. `secret` says that
    its value is never shown.
    """
    meta = {"text": text, "low": low, "high": high, "choices": choices, "zero": zero, "secret": secret}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True, slots=True)
class Server:
    """Where the service listens and what it takes in."""

    host: str = setting(
        "127.0.0.1",
        "Address to listen on. Any but a loopback address needs keys, or `access.open`.",
    )
    port: int = setting(0, "Port to listen on; 0 is the dialect's own: 3000 for isol8, else 8080.", low=0, high=65535)
    dialect: str = setting(
        ALL_DIALECTS,
        "What the root path speaks: `all` is our own API, with every dialect below its prefix; else the name of one.",
    )
    max_body_bytes: int = setting(10 * MIB, "Largest request body; a larger one is answered 413.", low=KIB, high=GIB)
    max_upload_bytes: int = setting(
        256 * MIB,
        "Largest file that is moved into a session or out of it; it is passed on as it arrives.",
        low=KIB,
        high=64 * GIB,
    )
    max_code_bytes: int = setting(MIB, "Largest source text of one execution.", low=1, high=GIB)
    max_batch: int = setting(100, "Most executions in one batch or task list.", low=1, high=10_000)
    trusted_proxies: tuple[str, ...] = setting(
        (), "Addresses or networks whose `X-Forwarded-For` is believed; nobody else's is."
    )
    stall_s: float = setting(
        30.0,
        "How long the client of a streamed answer may take nothing while its program waits for it or is over; then it "
        "is given up, and its program killed.",
        low=1,
        high=3600,
    )
    drain_s: float = setting(
        30.0, "How long running executions may go on after SIGTERM before they are killed.", low=0, high=3600
    )
    log_level: str = setting(
        "info",
        "Least severity that is logged, as lines of JSON on stderr. Executions and refused requests are `info`.",
        choices=("debug", "info", "warning", "error"),
    )


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call."""

    keys_file: str = setting(
        "api_keys.json",
        "File of API keys, made by `sandfork keys new`, or a plain JSON list of strings. When it is absent anybody "
        "may call; when it is malformed the service refuses to start. A relative path is relative to the directory "
        "the service is started in. `ZEROBOOT_API_KEYS_FILE` sets it too, and then the file must exist.",
    )
    open: bool = setting(False, "Serve on an address that is not loopback although there are no keys.")
    rate_per_s: float = setting(100.0, "Executions a second of one key, unless the key says otherwise.", low=0.001)
    per_minute: Mapping[str, int] = setting(
        {},
        "Executions a minute of one address, by dialect, such as `{ faber = 500 }`; 0 is no bound. A dialect that is "
        "not named keeps its own: 100 for faber, none for the others.",
        low=0,
    )
    per_hour: Mapping[str, int] = setting(
        {},
        "Executions an hour of one key, by dialect; 0 is no bound. A dialect that is not named keeps its own: 1000 for "
        "faber, none for the others.",
        low=0,
    )


@dataclass(frozen=True, slots=True)
class DefaultLimits:
    """What a program may use when its request does not say."""

    wall_s: float = setting(30.0, "Seconds of real time, from the moment the program is handed over.", low=0.001)
    cpu_s: float = setting(30.0, "Seconds of processor time, all processes and threads together.", low=0.001)
    memory_bytes: int = setting(512 * MIB, "Memory of all processes together, files in /tmp included.", low=8 * MIB)
    pids: int = setting(64, "Processes and threads at one time.", low=1)
    open_files: int = setting(256, "Open files of one process.", low=16)
    output_bytes: int = setting(MIB, "Bytes of stdout, and as many of stderr.", low=1)
    disk_bytes: int = setting(64 * MIB, "Bytes of files in the sandbox.", low=64 * KIB)
    cpus: float = setting(
        0.0,
        "Processors at a time, as a rate over all processes: 0.5 is half of one. 0 is as many as there are.",
        low=0.01,
        high=1024,
        zero="no quota",
    )


@dataclass(frozen=True, slots=True)
class MaximumLimits:
    """The most that a request may ask for; a dialect clamps or refuses what is above, as its contract says."""

    wall_s: float = setting(300.0, "Seconds of real time.", low=0.001)
    cpu_s: float = setting(300.0, "Seconds of processor time.", low=0.001)
    memory_bytes: int = setting(2 * GIB, "Memory of all processes together.", low=8 * MIB)
    pids: int = setting(256, "Processes and threads at one time.", low=1)
    open_files: int = setting(1024, "Open files of one process.", low=16)
    output_bytes: int = setting(16 * MIB, "Bytes of stdout, and as many of stderr.", low=1)
    disk_bytes: int = setting(GIB, "Bytes of files in the sandbox.", low=64 * KIB)
    cpus: float = setting(
        0.0,
        "Processors at a time; what names none has these, unless its default is lower. 0 is as many as there are.",
        low=0.01,
        high=1024,
        zero="no quota",
    )


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What programs may use."""

    default: DefaultLimits = field(default_factory=DefaultLimits)
    maximum: MaximumLimits = field(default_factory=MaximumLimits)


@dataclass(frozen=True, slots=True)
class Admission:
    """How many executions run, how many wait, and for how long."""

    max_running: int = setting(
        0, "Executions running at one time; 0 is automatic.", low=1, high=100_000, zero="automatic"
    )
    max_queued: int = setting(
        0,
        "Executions waiting for their turn; one more is answered 503 at once. 0 is automatic.",
        low=1,
        zero="automatic",
    )
    max_wait_s: float = setting(10.0, "Longest wait before an execution is refused.", low=0.001, high=3600)


@dataclass(frozen=True, slots=True)
class Pool:
    """Sandboxes forked and warmed ahead of the request."""

    size: int = setting(
        0,
        "Parked sandboxes of a template of weight 1; others get their weight's share. 0 is automatic.",
        low=1,
        high=100_000,
        zero="automatic",
    )
    sizes: Mapping[str, int] = setting(
        {},
        'Parked sandboxes of single templates, such as `{ python = 64, "python-numpy" = 0 }`; 0 parks none.',
        low=0,
        high=100_000,
    )
    refill_delay_s: float = setting(
        0.0015,
        "Pause between an answer and the fork that replaces its sandbox, so that answers go first.",
        low=0,
        high=1,
    )
    max_forking: int = setting(3, "Forks under way at one time in one template.", low=1, high=64)
    idle_s: float = setting(
        300.0,
        "Templates of most languages are made when they are first used, and end after so long without use. Those named "
        "in `sizes` are there from the start, and stay.",
        low=1,
        high=604_800,
    )


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sandboxes that outlive an execution, and executions that outlive their client."""

    max: int = setting(512, "Sessions at one time; one more is answered 503.", low=1, high=8192)
    max_per_caller: int = setting(256, "Sessions of one key, or of one address in open mode.", low=1, high=8192)
    max_waiting: int = setting(
        64, "Executions that wait for their turn in one session; one more is answered 503.", low=1, high=100_000
    )
    idle_s: float = setting(3600.0, "How long a session may be unused before it ends.", low=1)
    lifetime_s: float = setting(86_400.0, "How long a session may live, used or not.", low=1)
    disk_bytes: int = setting(
        256 * MIB,
        "Bytes of files in a session whose API cannot ask for an amount, as InstaVM's; less where `limits.maximum` or "
        "the key allows less.",
        low=64 * KIB,
    )
    max_terminals: int = setting(8, "Terminals of one session.", low=1, high=256)
    max_tasks: int = setting(256, "Executions at one time that nobody waits for; one more is answered 503.", low=1)
    max_task_results: int = setting(
        1024, "Results kept of executions that nobody waits for; beyond these the oldest are forgotten.", low=1
    )
    task_results_bytes: int = setting(
        128 * MIB, "What these results may take together; the oldest are forgotten first.", low=MIB
    )
    task_result_s: float = setting(3600.0, "How long such a result is kept.", low=1)


@dataclass(frozen=True, slots=True)
class Templates:
    """When a warm template is replaced by a fresh one, for new address layouts and hash seeds."""

    recycle_forks: int = setting(10_000, "Forks after which a template is replaced.", low=1)
    recycle_s: float = setting(3600.0, "Age in seconds at which a template is replaced.", low=1)


@dataclass(frozen=True, slots=True)
class Process:
    """The process tier: sandboxes made of namespaces, cgroups, Landlock and seccomp."""

    reduced: bool = setting(
        False,
        "Serve although the host forbids namespaces, with what is left (Landlock, seccomp, unique uids, rlimits). "
        'Health and every reply then say `isolation: "reduced"`.',
    )
    allow_missing: tuple[str, ...] = setting(
        (),
        "Isolation primitives whose absence is accepted, by the names `sandfork doctor` prints. Any other that is "
        "missing refuses to start.",
    )
    cgroup_parent: str = setting("", "Cgroup below which the service makes its own, as a path; empty is the root.")
    uid_base: int = setting(
        0x7001_0000,
        "First of the 2,097,152 user and group ids that nothing else on this host may use: 32,768 for each of up to "
        "64 services. A service runs as the first of its own, its sandboxes as those after it.",
        low=1000,
        high=0xFFF0_0000,
    )
    network_namespace: str = setting(
        "own",
        "`own` gives every sandbox an empty network of its own; `shared` lets sandboxes share one empty network, "
        "which forks faster.",
        choices=("own", "shared"),
    )


@dataclass(frozen=True, slots=True)
class Languages:
    """What can be run."""

    enable: tuple[str, ...] = setting((), "Languages of the catalogue to offer; none named is all that are installed.")
    directory: str = setting(
        "", "Directory of further languages, a TOML file each; `sandfork lang new` drafts one. Empty is none."
    )
    versions_at_start: bool = setting(
        True,
        "Have the languages tell their versions after the start, when no program has run for some seconds; else when "
        "a list of languages is first asked for, which then waits for them.",
    )
    compile_cache_bytes: int = setting(
        256 * MIB,
        "Memory for what compilers made, kept for the next run of the same program by the same key; 0 keeps nothing.",
        low=0,
        high=64 * GIB,
    )
    guest_packages: str = setting(
        "", "Directory of Python packages that programs may import; empty is the one installed with the service."
    )


@dataclass(frozen=True, slots=True)
class Images:
    """Root file systems of our own making, in place of the host's files."""

    directory: str = setting(
        "",
        "Directory of the store of images; empty is /var/lib/sandfork/images as root, else images in the user's "
        "~/.local/share/sandfork. The service must be able to enter it.",
    )
    use: bool = setting(
        True,
        "Run a language on an image where there is one for it; else all run on the host's files.",
    )
    host: tuple[str, ...] = setting((), "Languages that run on the host's files although there is an image for them.")
    build: bool = setting(
        True,
        "Let callers of the API have images built and removed (`POST` and `DELETE` at `/api/v1/rootfs`). Building "
        "takes root and mmdebstrap.",
    )
    max_size_mb: int = setting(16_384, "Largest image that may be asked for, in MiB of files.", low=16, high=1 << 24)
    max_snapshots: int = setting(256, "Snapshots at one time.", low=0, high=10_000)


@dataclass(frozen=True, slots=True)
class Remote:
    """The bucket of an S3 server from which images and snapshots come, and to which they go."""

    bucket: str = setting("", "Name of the bucket; empty is none.")
    prefix: str = setting("", "What the names of all objects begin with, so that others can use the bucket too.")
    endpoint: str = setting(
        "", "Address of the server, such as `https://minio.example:9000`; empty is Amazon's of the region."
    )
    region: str = setting("", "Region of the bucket; empty is that of the AWS configuration.")
    access_key: str = setting(
        "",
        "Access key. Without one, what the AWS tools use: `AWS_ACCESS_KEY_ID` and its like, `~/.aws`, the role of the "
        "machine.",
    )
    secret_key: str = setting(
        "",
        "Secret key of the access key; never shown. Better in the environment than in a file that others read.",
        secret=True,
    )
    connect_s: float = setting(5.0, "Seconds in which the server must take a connection.", low=0.1, high=300)
    read_s: float = setting(30.0, "Seconds in which it must send something.", low=0.1, high=3600)
    tries: int = setting(3, "How often a request is made that fails for no fault of its own.", low=1, high=20)
    part_bytes: int = setting(
        8 * MIB,
        "Size of the parts in which an image is sent: what is sent again after a break, and the memory that takes.",
        low=5 * MIB,
        high=GIB,
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. Section `[limits.default]` is `config.limits.default`, and so on."""

    server: Server = field(default_factory=Server)
    access: Access = field(default_factory=Access)
    limits: LimitSettings = field(default_factory=LimitSettings)
    admission: Admission = field(default_factory=Admission)
    pool: Pool = field(default_factory=Pool)
    sessions: Sessions = field(default_factory=Sessions)
    templates: Templates = field(default_factory=Templates)
    process: Process = field(default_factory=Process)
    languages: Languages = field(default_factory=Languages)
    images: Images = field(default_factory=Images)
    remote: Remote = field(default_factory=Remote)

    @property
    def port(self) -> int:
        """The port to listen on: the configured one, or the dialect's own."""
        return self.server.port or DIALECT_PORTS.get(self.server.dialect, DEFAULT_PORT)
