"""Compile the seccomp allow list (policy as data) to BPF with libseccomp.

Order: read the TOML -> add a rule per call, binary-tree optimised -> export the program for this machine's
architecture. The filter is loaded by the native core in every child. Kernel 3.17 (seccomp), 4.14 (actions).
"""

from __future__ import annotations

import errno
import tempfile
import tomllib
from importlib.resources import files
from typing import Any

import pyseccomp

_TREE = 2  # SCMP_FLTATR_CTL_OPTIMIZE: a binary tree instead of a chain of comparisons


class PolicyError(ValueError):
    """The policy file is not what its schema says."""


def compile_policy(name: str = "default") -> bytes:
    """Return the BPF program of a shipped policy: 8 bytes an instruction, at most 4096 of them.

    Calls that this libseccomp does not know are left out, which refuses them. *Raises* PolicyError.
    """
    text = (
        files("sandfork.policy").joinpath("seccomp.toml" if name == "default" else f"seccomp-{name}.toml").read_text()
    )
    policy = tomllib.loads(text)
    program = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    program.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, _TREE)
    for group in policy["allow"].values():
        for call in group:
            _add(program, pyseccomp.ALLOW, call)
    for word, calls in policy.get("refuse", {}).items():
        for call in calls:
            _add(program, pyseccomp.ERRNO(getattr(errno, word)), call)
    for rule in policy.get("rule", ()):
        for conditions in _alternatives(rule):
            _add(program, pyseccomp.ALLOW, rule["call"], *conditions)
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
        case "masked_eq":
            return pyseccomp.Arg(position, pyseccomp.MASKED_EQ, spec["mask"], value)
        case _:
            raise PolicyError(f"unknown op {spec['op']!r} in the seccomp policy; use eq or masked_eq")


def _add(program: Any, action: Any, call: str, *conditions: Any) -> None:
    if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call) < 0:
        return
    try:
        program.add_rule(action, call, *conditions)
    except ValueError:
        # libseccomp knows the name but not on this architecture: unknown calls are refused by default.
        return
