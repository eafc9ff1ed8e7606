"""From method and path to an endpoint: a dictionary for fixed paths, shapes for those with parts.

A part `{name}` stands for one part of the path, and `{name:path}` at the end for all that is left, which is passed on
as it was sent: a slash at its beginning, two dots in it mean something to whoever it is for. Parts are percent-decoded
once, each by itself, so that a name may hold a slash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import unquote

E = TypeVar("E")

REST = ":path}"


@dataclass(slots=True)
class _Shape(Generic[E]):
    """A path with parts in it, and its endpoints by method."""

    parts: tuple[str, ...]
    rest: str | None
    methods: dict[str, E] = field(default_factory=dict)

    def match(self, parts: list[str], path: str) -> dict[str, str] | None:
        """Return the parts of a path of this shape, None for one of another; `path` is as it was sent."""
        count = len(self.parts)
        if len(parts) < count or (len(parts) == count) != (self.rest is None):
            return None
        params: dict[str, str] = {}
        for mine, sent in zip(self.parts, parts, strict=False):
            if mine.startswith("{"):
                params[mine[1:-1]] = unquote(sent)
            elif mine != sent:
                return None
        if self.rest is not None:
            params[self.rest] = unquote(_after(path, count))
        return params


@dataclass(frozen=True, slots=True)
class Found(Generic[E]):
    """An endpoint and the parts of its path.

    When the path answers to other methods only, `allow` lists them and `beside` is the endpoint of one.
    """

    endpoint: E | None
    params: dict[str, str]
    allow: tuple[str, ...] = ()
    beside: E | None = None


class RouteTable(Generic[E]):
    """Endpoints by method and path. Runs of slashes count as one and a slash at the end as none."""

    def __init__(self) -> None:
        self._fixed: dict[str, dict[str, E]] = {}
        self._shapes: dict[str, _Shape[E]] = {}

    def add(self, method: str, path: str, endpoint: E) -> None:
        """Add an endpoint; GET also answers HEAD. *Raises* ValueError when there is one already."""
        methods = self._methods(path)
        for each in ("GET", "HEAD") if method == "GET" else (method,):
            if each in methods:
                raise ValueError(f"two endpoints answer {each} {path}")
            methods[each] = endpoint

    def _methods(self, path: str) -> dict[str, E]:
        if "{" not in path:
            return self._fixed.setdefault(path, {})
        if path not in self._shapes:
            parts = tuple(part for part in path.split("/") if part)
            rest = parts[-1].removesuffix(REST)[1:] if parts[-1].endswith(REST) else None
            self._shapes[path] = _Shape(parts if rest is None else parts[:-1], rest)
        return self._shapes[path].methods

    def exact(self, method: str, path: str) -> E | None:
        """Return the endpoint of a fixed path written as it was added, which nearly all are."""
        methods = self._fixed.get(path)
        return None if methods is None else methods.get(method)

    def find(self, method: str, path: str) -> Found[E]:
        """Return what answers, however the path is written; `path` is as it was sent, not decoded."""
        methods = self._fixed.get(normalised(unquote(path)))
        if methods is not None:
            return _found(methods, method, {})
        parts = [part for part in path.split("/") if part]
        for shape in self._shapes.values():
            params = shape.match(parts, path)
            if params is not None:
                return _found(shape.methods, method, params)
        return Found(None, {})


def _found(methods: dict[str, E], method: str, params: dict[str, str]) -> Found[E]:
    endpoint = methods.get(method)
    if endpoint is not None:
        return Found(endpoint, params)
    allow = tuple(sorted(methods))
    return Found(None, params, allow, methods[allow[0]])


def _after(path: str, count: int) -> str:
    """Return what follows the first `count` parts of a path and the slash after them."""
    place = 0
    for _ in range(count):
        while path.startswith("/", place):
            place += 1
        place = path.find("/", place)
    return path[place + 1 :]


def normalised(path: str) -> str:
    """Return a path with one slash between its parts and none at its end."""
    return "/" + "/".join(part for part in path.split("/") if part)
