"""What a server lets callers ask for, and the limits that result: `LimitPolicy` and `resolve_limits`, both pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

from sandfork.errors import Forbidden, InvalidRequest
from sandfork.model import Caller, Limits, LimitsOverride

MINIMUM = Limits(
    wall_s=0.001,
    cpu_s=0.001,
    memory_bytes=4 << 20,
    pids=1,
    open_files=8,
    output_bytes=1,
    disk_bytes=64 << 10,
    cpus=0.01,
)
"""Below these no program can start; asking for less is a mistake and refused as one."""

_NAMES = tuple(item.name for item in fields(Limits))
_WHOLE = frozenset(_NAMES) - {"wall_s", "cpu_s", "cpus"}


MAXIMUM = Limits(
    wall_s=300.0,
    cpu_s=300.0,
    memory_bytes=2 << 30,
    pids=256,
    open_files=1024,
    output_bytes=16 << 20,
    disk_bytes=1 << 30,
)


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """Defaults and ceilings of a server. Sizes in bytes; counts where no unit is named.

    `rates_cpus` says that the tier can hold a program to `cpus` at a time. Where it cannot, they bound processor time.
    """

    default: Limits = field(default_factory=Limits)
    maximum: Limits = MAXIMUM
    max_code_bytes: int = 1 << 20
    max_stdin_bytes: int = 8 << 20
    max_files: int = 256
    max_files_bytes: int = 64 << 20
    max_args: int = 1024
    max_args_bytes: int = 128 << 10
    max_env: int = 256
    max_env_bytes: int = 128 << 10
    max_collect: int = 64
    max_collect_bytes: int = 16 << 20
    rates_cpus: bool = True


def resolve_limits(override: LimitsOverride, policy: LimitPolicy, caller: Caller) -> Limits:
    """Return the limits an execution runs under.

    A wall time above the ceiling is clamped to it; anything else above it is refused. A cpu time that is not named
    is at least the wall time, of all processors where several are named, so that a program given longer to run is not
    stopped at the default cpu time instead; one that is named stands. Defaults above the key's own ceilings are lowered
    to them without a word, as nobody asked for them.

    *Raises* InvalidRequest (no number, not finite, below `MINIMUM`), Forbidden (names the ceiling).
    """
    ceiling = policy.maximum
    if caller.max_limits is not None:
        ceiling = _lower(policy.maximum, caller.max_limits)
    default = policy.default
    wall_s = default.wall_s if override.wall_s is None else _checked("wall_s", override.wall_s)
    wall_s = min(wall_s, ceiling.wall_s)
    values: dict[str, float] = {"wall_s": wall_s}
    for name in _NAMES[1:]:
        asked = getattr(override, name)
        limit = getattr(ceiling, name)
        if asked is None:
            values[name] = min(getattr(default, name), limit)
        elif _checked(name, asked) > limit:
            whose = "server" if limit == getattr(policy.maximum, name) else "key"
            raise Forbidden(f"limits.{name}: {asked} is above the {whose}'s ceiling of {limit}")
        else:
            values[name] = asked
    if override.cpu_s is None:
        values["cpu_s"] = min(max(values["cpu_s"], wall_s * max(1.0, override.cpus or 1.0)), ceiling.cpu_s)
    limits = Limits(**values)  # type: ignore[arg-type]  # _checked saw to it that whole numbers are whole
    return limits if policy.rates_cpus else in_processor_time(limits, limits.cpus)


def in_processor_time(limits: Limits, cpus: float) -> Limits:
    """Return `limits` for a tier that cannot hold a program to so many processors at a time.

    What is left to it is the processor time that they could give within the wall time.
    """
    return replace(limits, cpu_s=min(limits.cpu_s, max(cpus * limits.wall_s, MINIMUM.cpu_s)), cpus=math.inf)


def _lower(one: Limits, other: Limits) -> Limits:
    return Limits(**{name: min(getattr(one, name), getattr(other, name)) for name in _NAMES})


def _checked(name: str, value: object) -> float:
    """Return `value` when it is a number a limit of that name can have. *Raises* InvalidRequest."""
    wanted = int if name in _WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise InvalidRequest(f"limits.{name}", "must be a whole number" if name in _WHOLE else "must be a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"limits.{name}", "must be finite")
    if value <= 0:
        raise InvalidRequest(f"limits.{name}", "must be above zero")
    minimum = getattr(MINIMUM, name)
    if value < minimum:
        raise InvalidRequest(f"limits.{name}", f"must be at least {minimum}")
    return value
