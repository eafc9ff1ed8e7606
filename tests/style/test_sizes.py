"""Modules and functions stay small enough to be read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.style.source import Module, invented, modules

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40
P90_FUNCTION_LINES = 25

#: What is longer, and why it reads better so. "path" for a module, "path:function" for a function.
EXCEPTIONS: dict[str, str] = {}


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """Yield (name, lines) of every function, without its docstring and decorators."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None and first.end_lineno is not None:
                lines -= first.end_lineno - first.lineno + 1
            yield node.name, lines


def too_long(module: Module) -> Iterator[str]:
    lines = module.text.count("\n")
    if lines > MAX_MODULE_LINES and module.relative not in EXCEPTIONS:
        yield f"{module.relative}: {lines} lines"
    for name, length in functions(module):
        where = f"{module.relative}:{name}"
        if length > MAX_FUNCTION_LINES and where not in EXCEPTIONS:
            yield f"{where}: {length} lines"


def test_no_module_and_no_function_is_too_long() -> None:
    assert [violation for module in modules() for violation in too_long(module)] == []


def test_nine_functions_in_ten_are_short() -> None:
    lengths = sorted(length for module in modules() for _, length in functions(module))
    assert lengths[int(len(lengths) * 0.9)] <= P90_FUNCTION_LINES


def test_every_exception_is_still_needed() -> None:
    found = {module.relative for module in modules() if module.text.count("\n") > MAX_MODULE_LINES}
    found |= {f"{m.relative}:{name}" for m in modules() for name, length in functions(m) if length > MAX_FUNCTION_LINES}
    assert set(EXCEPTIONS) <= found


def test_a_long_function_and_a_long_module_are_found() -> None:
    long_function = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert list(too_long(invented("sandfork.long", long_function)))
    assert list(too_long(invented("sandfork.long", "x = 1\n" * (MAX_MODULE_LINES + 1))))
    assert not list(too_long(invented("sandfork.long", "x = 1\n" * MAX_MODULE_LINES)))
