"""Compile the seccomp allow list (policy as data) to BPF with libseccomp.

Order: read the TOML -> add a rule per call, binary-tree optimised -> export for this machine's architecture. The native
core loads the long allow list once in a zygote and a short seal in every child (native/messages.h says why that is the
same).
Kernel 3.17 (seccomp), 4.14 (actions).
"""

from __future__ import annotations

import errno
import tempfile
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pyseccomp

_TREE = 2  # SCMP_FLTATR_CTL_OPTIMIZE: a binary tree instead of a chain of comparisons


class PolicyError(ValueError):
    """The policy file is not what its schema says."""


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """Two BPF programs of 8-byte instructions: `allow` for the zygote, `seal` for every child on top of it."""

    allow: bytes
    seal: bytes


def compile_policy(*, reduced: bool = False) -> CompiledPolicy:
    """Compile the shipped policy, at most 4096 instructions; `reduced` refuses also what policy/reduced.toml names.

    Calls that this libseccomp does not know are left out, which refuses them. *Raises* PolicyError.
    """
    policy = _read("seccomp.toml")
    if reduced:
        policy = _narrowed(policy, _read("reduced.toml")["seccomp"])
    refusals = {call: getattr(errno, word) for word, calls in policy.get("refuse", {}).items() for call in calls}
    setup = policy["setup"]["calls"]
    return CompiledPolicy(_allow_list(policy, refusals, setup), _seal(refusals, setup))


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(files("sandfork.policy").joinpath(name).read_text())


def _narrowed(policy: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return `policy` without the groups and calls that `change` takes away, and with its rules."""
    gone = set(change["without_calls"])
    unknown = set(change["without_groups"]) - set(policy["allow"])
    if unknown:
        raise PolicyError(f"the seccomp policy has no group {', '.join(sorted(unknown))} to go without")
    groups = {
        group: [call for call in calls if call not in gone]
        for group, calls in policy["allow"].items()
        if group not in change["without_groups"]
    }
    rules = [rule for rule in policy["rule"] if rule.get("call") not in gone]
    return policy | {"allow": groups, "rule": rules + change["rule"]}


def _allow_list(policy: dict[str, Any], refusals: dict[str, int], setup: list[str]) -> bytes:
    program = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    program.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, _TREE)
    for call in (*(call for group in policy["allow"].values() for call in group), *setup):
        _add(program, pyseccomp.ALLOW, call)
    for call, number in refusals.items():
        if call not in setup:
            _add(program, pyseccomp.ERRNO(number), call)
    for rule in policy.get("rule", ()):
        action = pyseccomp.ERRNO(0) if rule.get("pretend") else pyseccomp.ALLOW
        for call, argument in rule.get("calls", {rule.get("call"): rule.get("argument")}).items():
            for conditions in _alternatives(rule | {"argument": argument}):
                _add(program, action, call, *conditions)
    return _exported(program)


def _seal(refusals: dict[str, int], setup: list[str]) -> bytes:
    program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call in setup:
        _add(program, pyseccomp.ERRNO(refusals.get(call, errno.EPERM)), call)
    return _exported(program)


def _exported(program: Any) -> bytes:
    with tempfile.TemporaryFile() as out:
        program.export_bpf(out)
        out.seek(0)
        return out.read()


def _alternatives(rule: dict[str, Any]) -> list[list[Any]]:
    """Turn a rule's conditions into lists of libseccomp arguments, each list one sufficient conjunction."""
    if "any" in rule:
        return [[_condition(c) for c in conjunction] for conjunction in rule["any"]]
    if "all" in rule:
        return [[_condition(c) for c in rule["all"]]]
    return [[_condition(rule | {"value": value})] for value in rule.get("values", (rule.get("value"),))]


def _condition(spec: dict[str, Any]) -> Any:
    position, value = spec["argument"], spec["value"]
    match spec["op"]:
        case "eq":
            return pyseccomp.Arg(position, pyseccomp.EQ, value)
        case "ne":
            return pyseccomp.Arg(position, pyseccomp.NE, value)
        case "masked_eq":
            return pyseccomp.Arg(position, pyseccomp.MASKED_EQ, spec["mask"], value)
        case _:
            raise PolicyError(f"unknown op {spec['op']!r} in the seccomp policy; use eq, ne or masked_eq")


def _add(program: Any, action: Any, call: str, *conditions: Any) -> None:
    if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call) < 0:
        return
    try:
        program.add_rule(action, call, *conditions)
    except ValueError:
        # libseccomp knows the name but not on this architecture: unknown calls are refused by default.
        return
