"""The OpenAPI document of the HTTP door, made from the proto's descriptors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from siserve import __version__

__all__ = ["make_document"]

_TYPES: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "format": "uint64"},  # as JSON of protobuf is
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "integer"},
                "status": {"type": "string", "description": "name of the gRPC status"},
                "message": {"type": "string", "description": "begins with the field's name"},
            },
        }
    },
}


def make_document(routes: Mapping[tuple[str, str], tuple[str, Descriptor, Descriptor]]) -> Any:
    """Describe the door.

    Args:
        routes: by method and path: what it does, its request and its reply.

    Returns:
        The document as JSON takes it.
    """
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    for (method, path), (summary, request, reply) in routes.items():
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {
                "200": {"description": "The reply.", "content": _json(_refer(reply, schemas))},
                "default": {
                    "description": "Why not; 429 comes with Retry-After.",
                    "content": _json({"$ref": "#/components/schemas/Error"}),
                },
            },
        }
        if method == "POST":
            content = _json(_refer(request, schemas))
            operation["requestBody"] = {"required": True, "content": content}
        else:
            operation["parameters"] = [
                {"name": field.json_name, "in": "query", "schema": _field(field, schemas)}
                for field in request.fields
            ]
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "siserve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _refer(message: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    """Put a message and all within it among the schemas; return the reference to it."""
    if message.name not in schemas:
        schemas[message.name] = {}  # before its fields: a message may lie within itself
        properties = {field.json_name: _field(field, schemas) for field in message.fields}
        schemas[message.name] = {"type": "object", "properties": properties}
    return {"$ref": f"#/components/schemas/{message.name}"}


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        values = _field(kind.fields_by_name["value"], schemas)
        return {"type": "object", "additionalProperties": values}
    if kind is not None:
        one = _refer(kind, schemas)
    elif field.enum_type is not None:
        one = {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    else:
        one = dict(_TYPES[field.type])
    return {"type": "array", "items": one} if field.is_repeated else one
