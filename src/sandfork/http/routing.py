"""From method and path to an endpoint: a dictionary for fixed paths, compiled patterns for those with parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from re import Pattern
from typing import Any, Generic, TypeVar

from starlette.routing import compile_path

E = TypeVar("E")


@dataclass(slots=True)
class _Shape(Generic[E]):
    """A path with parts in it, and its endpoints by method."""

    pattern: Pattern[str]
    convertors: dict[str, Any]
    methods: dict[str, E] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found(Generic[E]):
    """An endpoint and the parts of its path.

    When the path answers to other methods only, `allow` lists them and `beside` is the endpoint of one.
    """

    endpoint: E | None
    params: dict[str, Any]
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
            pattern, _, convertors = compile_path(path)
            self._shapes[path] = _Shape(pattern, convertors)
        return self._shapes[path].methods

    def exact(self, method: str, path: str) -> E | None:
        """Return the endpoint of a fixed path written as it was added, which nearly all are."""
        methods = self._fixed.get(path)
        return None if methods is None else methods.get(method)

    def find(self, method: str, path: str) -> Found[E]:
        """Return what answers, however the path is written."""
        path = normalised(path)
        methods = self._fixed.get(path)
        if methods is not None:
            return _found(methods, method, {})
        for shape in self._shapes.values():
            match = shape.pattern.match(path)
            if match:
                params = {name: shape.convertors[name].convert(text) for name, text in match.groupdict().items()}
                return _found(shape.methods, method, params)
        return Found(None, {})


def _found(methods: dict[str, E], method: str, params: dict[str, Any]) -> Found[E]:
    endpoint = methods.get(method)
    if endpoint is not None:
        return Found(endpoint, params)
    allow = tuple(sorted(methods))
    return Found(None, params, allow, methods[allow[0]])


def normalised(path: str) -> str:
    """Return a path with one slash between its parts and none at its end."""
    return "/" + "/".join(part for part in path.split("/") if part)
