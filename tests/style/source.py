"""Read the tree for the style tests: modules, their names, their imports."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"


@dataclass(frozen=True)
class Module:
    """One Python file: its dotted name, where it is, its text."""

    name: str
    path: Path
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    @property
    def relative(self) -> str:
        return str(self.path.relative_to(ROOT)) if self.path.is_absolute() else str(self.path)


def invented(name: str, text: str) -> Module:
    """Return a module that is nowhere, to show that a rule refuses what it should."""
    return Module(name, Path(name.replace(".", "/") + ".py"), text)


@cache
def modules() -> tuple[Module, ...]:
    """Return every module of the package."""
    found = []
    for path in sorted((SRC / "sandfork").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, path.read_text()))
    return tuple(found)


@cache
def modules_of_tests() -> tuple[Module, ...]:
    """Return every Python file below tests/."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    return tuple(Module(".".join(p.relative_to(ROOT).with_suffix("").parts), p, p.read_text()) for p in paths)


@cache
def project_files() -> tuple[Path, ...]:
    """Return every file of the project: what git tracks or would, or all files where there is no git."""
    argv = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return tuple(path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file())
    return tuple(path for path in sorted(ROOT.rglob("*")) if path.is_file())


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything `module` imports; `from a import b` yields both a and a.b."""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
