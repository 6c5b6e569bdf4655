"""From a request's bytes to its message, without work on what no request may hold.

A turn of two bytes on the wire, or of two characters of JSON, becomes an object of some hundred:
so how many there are is seen before they are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from siserve.bundle.wire import WireError, as_message, as_text, fields
from siserve.serving.errors import InvalidRequest
from siserve.serving.requests import RequestLimits

__all__ = ["parse", "parse_json", "parse_query"]

MAX_FIELDS_SEARCHED = 5_000  # beside those that may be repeated: some 15 ms
QUICK_BYTES = 64 << 10  # parsed within 4 ms, whatever they hold

AnyMessage = TypeVar("AnyMessage", bound=Message)


def parse(kind: Callable[[], AnyMessage], serialized: bytes, limits: RequestLimits) -> AnyMessage:
    """Parse a message.

    Raises:
        InvalidRequest: naming a field of a long message that has more entries than any request
            may have, or the field that holds text which is not UTF-8, or the message itself if
            it is not protobuf.
    """
    message = kind()
    descriptor = cast(Descriptor, message.DESCRIPTOR)
    if len(serialized) > QUICK_BYTES:
        _check_counts(descriptor, memoryview(serialized), limits)
    try:
        message.ParseFromString(serialized)
    except DecodeError:
        damage = _find_damage(descriptor, memoryview(serialized))
        raise (InvalidRequest(*damage) if damage else _no_message(descriptor)) from None
    return message


def parse_json(kind: Callable[[], AnyMessage], written: bytes, limits: RequestLimits) -> AnyMessage:
    """Parse the JSON form of a message.

    Raises:
        InvalidRequest: naming a field that has more entries than any request may have, or the
            body, if it is not the JSON form of the message.
    """
    try:
        content = json.loads(written)
    except (RecursionError, ValueError):
        raise InvalidRequest("body", _unlike("the JSON form", "it is no JSON")) from None
    if not isinstance(content, dict):
        raise InvalidRequest("body", "is not a JSON object")
    message = kind()
    _check_json_counts(cast(Descriptor, message.DESCRIPTOR), content, limits.counts)
    return _filled(message, content, "body", "the JSON form")


def parse_query(kind: Callable[[], AnyMessage], query: str) -> AnyMessage:
    """Parse a message from what follows the question mark in an address.

    Raises:
        InvalidRequest: naming the query, if a field is unknown or stands twice.
    """
    pairs = parse_qsl(query, keep_blank_values=True)
    content = dict(pairs)
    if len(content) < len(pairs):
        raise InvalidRequest("query", "has a field twice; name each once")
    return _filled(kind(), content, "query", "a query form")


def _filled(message: AnyMessage, content: dict[str, Any], where: str, form: str) -> AnyMessage:
    """Set the fields of a message to what came in a form of it."""
    try:
        json_format.ParseDict(content, message, max_recursion_depth=8)
        message.SerializeToString()  # text that is no Unicode shows here at the latest
    except (json_format.ParseError, RecursionError, TypeError, ValueError) as error:
        is_told = isinstance(error, json_format.ParseError)
        told = str(error) if is_told else "a value does not fit its field"
        first = (told.splitlines() or [""])[0][:200]
        raise InvalidRequest(where, _unlike(form, first)) from None
    return message


def _unlike(form: str, why: str) -> str:
    return f"is not {form} of the request: {why}"


def _check_counts(descriptor: Descriptor, message: memoryview, limits: RequestLimits) -> None:
    """Refuse a message that has more fields, or more of one field, than any request.

    As many are looked at as a request may have: the time that its checks would take. What cannot
    be read here is refused too, although protobuf still knows groups: their end is not known
    before all of it is read.
    """
    most = limits.counts
    room = MAX_FIELDS_SEARCHED + sum(most.values())
    counts = dict.fromkeys(most, 0)
    try:
        for seen, name in enumerate(_names(descriptor, message)):
            if name in most:
                counts[name] += 1
                if counts[name] > most[name]:
                    raise _too_many(name, f"more than {most[name]}", most[name])
            if seen >= room:
                raise InvalidRequest(descriptor.name, f"has more than {room} fields")
    except WireError:
        raise _no_message(descriptor) from None


def _names(descriptor: Descriptor, message: memoryview) -> Iterator[str]:
    """Name the fields of a message in order, then those of messages that it holds once."""
    for number, value in fields(message):
        field = descriptor.fields_by_number.get(number)
        if field is None:
            yield ""
            continue
        yield field.name
        if field.message_type is None or field.is_repeated or isinstance(value, int):
            continue
        yield from _names(field.message_type, value)


def _check_json_counts(
    descriptor: Descriptor, content: dict[str, Any], most: dict[str, int]
) -> None:
    for name, value in content.items():
        field = descriptor.fields_by_camelcase_name.get(name) or descriptor.fields_by_name.get(name)
        if field is None:
            continue
        if field.is_repeated and isinstance(value, list) and len(value) > most[field.name]:
            raise _too_many(field.name, str(len(value)), most[field.name])
        if field.message_type is not None and isinstance(value, dict):
            _check_json_counts(field.message_type, value, most)


def _too_many(field: str, count: str, most: int) -> InvalidRequest:
    return InvalidRequest(field, f"has {count} entries, at most {most} are taken; send fewer")


def _no_message(descriptor: Descriptor) -> InvalidRequest:
    return InvalidRequest(
        descriptor.name,
        f"is not a {descriptor.full_name} message; check the client's proto files",
    )


def _find_damage(descriptor: Descriptor, message: memoryview) -> tuple[str, str] | None:
    """Find the first text that is not UTF-8 and tell its path and what is wrong."""
    try:
        return _find_bad_text(descriptor, message, iter(range(MAX_FIELDS_SEARCHED)))
    except WireError:
        return None


def _find_bad_text(
    descriptor: Descriptor, message: memoryview, budget: Iterator[int]
) -> tuple[str, str] | None:
    counts: dict[int, int] = {}
    for number, value in fields(message):
        if next(budget, None) is None:
            return None
        field = descriptor.fields_by_number.get(number)
        if field is None:
            continue
        index = counts[number] = counts.get(number, -1) + 1
        path = f"{field.name}[{index}]" if field.is_repeated else field.name
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
            inner = _find_bad_text(field.message_type, as_message(value), budget)
            if inner is not None:
                return f"{path}.{inner[0]}", inner[1]
        elif field.type == FieldDescriptor.TYPE_STRING:
            try:
                as_text(value)
            except WireError:
                return path, "is not valid UTF-8"
    return None
