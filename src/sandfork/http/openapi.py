"""OpenAPI 3.1 documents, made from the routes and the wire types of the dialects that are spoken."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from sandfork.dialects.base import (
    ActionRoute,
    Dialect,
    ExecRoute,
    HealthRoute,
    LanguageRoute,
    QueryRoute,
    Reply,
    Route,
    SocketRoute,
    TerminalRoute,
)
from sandfork.dialects.refusals import UndecidedError
from sandfork.http.routing import REST

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Spoken:
    """A dialect and the prefix it answers under."""

    dialect: Dialect
    prefix: str


def openapi_document(spoken: Sequence[Spoken], title: str, version: str, languages: Sequence[str] = ()) -> Reply:
    """Return the document of some dialects, as an answer. `languages` are the names and aliases on offer."""
    paths: dict[str, JsonObject] = {}
    schemas: JsonObject = {}
    everything = any(not each.prefix for each in spoken)
    for each in spoken:
        of_types, components = _schemas(each.dialect)
        _say_what_is_on_offer(components, languages)
        schemas.update(components)
        for route in each.dialect.routes:
            if not route.documented:
                continue
            method = route.method.lower()
            path = told_path(route)
            paths.setdefault(each.prefix + path, {})[method] = _operation(each, route, of_types)
            if each.prefix and route.at_root and everything:
                at_root = paths.setdefault(path, {})
                operation = _operation(each, route, of_types)
                operation["operationId"] = f"root_{operation['operationId']}"
                at_root[method] = operation if route.mark is None else _joined(at_root.get(method), operation)
                schemas[UndecidedError.__name__] = _UNDECIDED
    document = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version or "0", "description": spoken[0].dialect.description},
        "tags": [{"name": each.dialect.title, "description": each.dialect.description} for each in spoken],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY_SCHEMES},
    }
    return Reply(json.dumps(document).encode())


def told_path(route: Route) -> str:
    """Return a route's path as documents have it."""
    return route.path.replace(REST, "}")


def _joined(others: JsonObject | None, operation: JsonObject) -> JsonObject:
    """Return the operation of a path that several dialects have: bodies and answers of any of them.

    An error may also be one from before the dialect was known.
    """
    parts = {"requestBody": operation["requestBody"], **operation["responses"]}
    for name, part in parts.items():
        schemas = [part["content"]["application/json"]["schema"]]
        if others is not None:
            before = others["requestBody"] if name == "requestBody" else others["responses"].get(name)
            schemas += before["content"]["application/json"]["schema"]["anyOf"] if before else []
        elif name not in ("requestBody", "200"):
            schemas.append({"$ref": f"#/components/schemas/{UndecidedError.__name__}"})
        part["content"]["application/json"]["schema"] = {"anyOf": schemas}
    if others is not None:
        operation["responses"] = others["responses"] | operation["responses"]
    return operation


_UNDECIDED: JsonObject = msgspec.json.schema_components([UndecidedError])[1][UndecidedError.__name__]
_SECURITY_SCHEMES: JsonObject = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _schemas(dialect: Dialect) -> tuple[dict[Any, JsonObject], JsonObject]:
    """Return the schema of each wire type of a dialect, and the components they refer to, named after the dialect."""
    told = [route for route in dialect.routes if route.documented]
    names = ("body_type", "reply_type", "form_type", "event_type", "message_type")
    found = [getattr(route, name, None) for route in told for name in names]
    types = list(dict.fromkeys([dialect.error_type, *(each for each in found if each is not None)]))
    template = f"#/components/schemas/{dialect.name}.{{name}}"
    schemas, components = msgspec.json.schema_components(types, ref_template=template)
    for wire_type, refinement in dialect.refinements.items():
        components[wire_type.__name__].update(copy.deepcopy(dict(refinement)))
    named = {f"{dialect.name}.{name}": schema for name, schema in components.items()}
    return dict(zip(types, schemas, strict=True)), named


def _say_what_is_on_offer(components: JsonObject, languages: Sequence[str]) -> None:
    """List the languages, and leave out the fields and values that are refused as not supported."""
    alternatives = [each for schema in components.values() for each in schema.get("oneOf", ())]
    for schema in (*components.values(), *alternatives):
        properties: JsonObject = schema.get("properties", {})
        for name in [name for name, each in properties.items() if each.pop("x-unavailable", False)]:
            del properties[name]
        for each in properties.values():
            if "x-only" in each:
                del each["anyOf"]
                each["enum"] = each.pop("x-only")
            if each.pop("x-languages", False) and languages:
                each["enum"] = [*sorted(languages), *([None] if {"type": "null"} in each.get("anyOf", ()) else [])]


def _operation(spoken: Spoken, route: Route, of_types: dict[Any, JsonObject]) -> JsonObject:
    dialect = spoken.dialect
    words = [dialect.name, route.method.lower(), *re.findall(r"[A-Za-z0-9_]+", route.path)]
    operation: JsonObject = {
        "operationId": "_".join(words).lower(),
        "summary": route.summary,
        "tags": [dialect.title],
        "responses": _successes(route, of_types),
    }
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    if isinstance(route, HealthRoute) and route.reply_type is not None:
        unready = _json(of_types[route.reply_type])
        operation["responses"]["503"] = {"description": "No template is ready.", "content": unready}
    body = _request_body(route, of_types)
    if body is not None:
        operation["requestBody"] = body
    if isinstance(route, KEYED):
        operation["security"] = [{}, {"bearer": []}, {"apiKey": []}]
        further = (426,) if isinstance(route, SocketRoute | TerminalRoute) else ()
        for status in (*dialect.error_statuses, *further):
            content = _json(of_types[dialect.error_type])
            operation["responses"][str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    return operation


KEYED = (ExecRoute, ActionRoute, SocketRoute, TerminalRoute, QueryRoute, LanguageRoute)


def _parameters(route: Route) -> list[JsonObject]:
    parts = [part[1:-1] for part in told_path(route).split("/") if part.startswith("{")]
    places = [(part, "path", True) for part in parts]
    places += [(name, "query", False) for name in route.query] if isinstance(route, ActionRoute) else []
    schema = {"type": "string", "minLength": 1}
    return [{"name": name, "in": where, "required": must, "schema": schema} for name, where, must in places]


def _request_body(route: Route, of_types: dict[Any, JsonObject]) -> JsonObject | None:
    """Return what a route reads: JSON, a form, or any bytes."""
    content: JsonObject = {}
    if isinstance(route, ExecRoute | QueryRoute | ActionRoute) and route.body_type is not None:
        examples = {e.summary: {"value": json.loads(e.request)} for e in route.examples if e.request}
        content |= _json(of_types[route.body_type], examples)
    if isinstance(route, ActionRoute) and route.form_type is not None:
        types = ("multipart/form-data", *(() if route.upload else ("application/x-www-form-urlencoded",)))
        content |= {each: {"schema": of_types[route.form_type]} for each in types}
    if isinstance(route, ActionRoute) and route.upload and not content:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": content} if content else None


def _successes(route: Route, of_types: dict[Any, JsonObject]) -> JsonObject:
    """Return the good answers of a route, by status. Events and messages are told as what their JSON is."""
    if isinstance(route, SocketRoute | TerminalRoute):
        schemas = {"x-messages": route.message_type, "x-events": route.event_type}
        told = {name: of_types[each] for name, each in schemas.items() if each is not None}
        return {"101": {"description": "The connection is a WebSocket from here on.", **told}}
    status, kind = (str(route.status), route.reply_content) if isinstance(route, ActionRoute) else ("200", "text/plain")
    content: JsonObject = {}
    if route.reply_type is not None:
        examples = {e.summary: {"value": json.loads(e.reply)} for e in route.examples if e.reply and e.status == 200}
        content |= _json(of_types[route.reply_type], examples)
    if isinstance(route, ExecRoute) and route.event_type is not None:
        content["text/event-stream"] = {"schema": _event(of_types[route.event_type])}
    return {status: {"description": route.summary, "content": content or {kind: {"schema": {"type": "string"}}}}}


def _event(schema: JsonObject) -> JsonObject:
    """Return the schema of each server-sent event, whose data is JSON of another schema."""
    told = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": told}, "required": ["data"]}


def _json(schema: JsonObject, examples: JsonObject | None = None) -> JsonObject:
    return {"application/json": {"schema": schema, **({"examples": examples} if examples else {})}}
