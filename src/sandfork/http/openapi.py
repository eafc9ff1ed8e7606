"""OpenAPI 3.1 documents, made from the routes and the wire types of the dialects that are spoken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from sandfork.dialects.base import Dialect, ExecRoute, HealthRoute, Reply, Route

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
    for each in spoken:
        of_types, components = _schemas(each.dialect)
        _say_what_is_on_offer(components, languages)
        schemas.update(components)
        for route in each.dialect.routes:
            operation = _operation(each, route, of_types)
            paths.setdefault(each.prefix + route.path, {})[route.method.lower()] = operation
    document = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version or "0", "description": spoken[0].dialect.description},
        "tags": [{"name": each.dialect.title, "description": each.dialect.description} for each in spoken],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY_SCHEMES},
    }
    return Reply(json.dumps(document).encode())


_SECURITY_SCHEMES: JsonObject = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _schemas(dialect: Dialect) -> tuple[dict[type[Any], JsonObject], JsonObject]:
    """Return the schema of each wire type of a dialect, and the components they refer to, named after the dialect."""
    types: list[type[Any]] = [dialect.error_type]
    for route in dialect.routes:
        types += [route.body_type] if isinstance(route, ExecRoute) else []
        types += [route.reply_type] if route.reply_type is not None else []
    types = list(dict.fromkeys(types))
    template = f"#/components/schemas/{dialect.name}.{{name}}"
    schemas, components = msgspec.json.schema_components(types, ref_template=template)
    for wire_type, refinement in dialect.refinements.items():
        components[wire_type.__name__].update(refinement)
    named = {f"{dialect.name}.{name}": schema for name, schema in components.items()}
    return dict(zip(types, schemas, strict=True)), named


def _say_what_is_on_offer(components: JsonObject, languages: Sequence[str]) -> None:
    """List the languages, and leave out the fields and values that are refused as not supported."""
    for schema in components.values():
        properties: JsonObject = schema.get("properties", {})
        for name in [name for name, each in properties.items() if each.pop("x-unavailable", False)]:
            del properties[name]
        for each in properties.values():
            if "x-only" in each:
                del each["anyOf"]
                each["enum"] = each.pop("x-only")
            if each.pop("x-languages", False) and languages:
                each["enum"] = sorted(languages)


def _operation(spoken: Spoken, route: Route, of_types: dict[type[Any], JsonObject]) -> JsonObject:
    dialect = spoken.dialect
    words = [dialect.name, route.method.lower(), *route.path.replace("{", "").replace("}", "").split("/")]
    operation: JsonObject = {
        "operationId": "_".join(word for word in words if word),
        "summary": route.summary,
        "tags": [dialect.title],
        "responses": {"200": _success(route, of_types)},
    }
    parts = [part[1:-1].partition(":")[0] for part in route.path.split("/") if part.startswith("{")]
    if parts:
        operation["parameters"] = [
            {"name": part, "in": "path", "required": True, "schema": {"type": "string"}} for part in parts
        ]
    if isinstance(route, HealthRoute) and route.reply_type is not None:
        unready = _json(of_types[route.reply_type])
        operation["responses"]["503"] = {"description": "No template is ready.", "content": unready}
    if isinstance(route, ExecRoute):
        operation["security"] = [{}, {"bearer": []}, {"apiKey": []}]
        examples = {e.summary: {"value": json.loads(e.request)} for e in route.examples if e.request}
        operation["requestBody"] = {"required": True, "content": _json(of_types[route.body_type], examples)}
        for status in dialect.error_statuses:
            content = _json(of_types[dialect.error_type])
            operation["responses"][str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    return operation


def _success(route: Route, of_types: dict[type[Any], JsonObject]) -> JsonObject:
    if route.reply_type is None:
        return {"description": route.summary, "content": {"text/plain": {"schema": {"type": "string"}}}}
    examples = {e.summary: {"value": json.loads(e.reply)} for e in route.examples if e.reply and e.status == 200}
    return {"description": route.summary, "content": _json(of_types[route.reply_type], examples)}


def _json(schema: JsonObject, examples: JsonObject | None = None) -> JsonObject:
    return {"application/json": {"schema": schema, **({"examples": examples} if examples else {})}}
