"""What the HTTP door answers: the proto's calls as JSON, and the page to try them."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message

from siserve.serving.calls import Call
from siserve.serving.doors import DIALOG, Hall, request_id
from siserve.serving.errors import InvalidRequest, RequestError, TryLater
from siserve.serving.openapi import make_document
from siserve.serving.parsing import parse_json, parse_query
from siserve.serving.requests import RequestLimits
from siserve.serving.status import code_of

__all__ = ["Reply", "Request", "Routes"]

_log = logging.getLogger(__name__)

#: Nobody waits longer for an answer over HTTP.
DEADLINE_SECONDS = 30.0

_CALLS = {
    ("POST", "/v1/responses"): ("GenerateResponses", "Several responses to a dialog."),
    ("POST", "/v1/variants"): ("VaryResponse", "A given response in other words."),
    ("POST", "/v1/scores"): ("ScoreResponses", "How likely given responses are."),
    ("GET", "/v1/model"): ("GetModel", "What is served, and its limits."),
}
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Request:
    """An HTTP request; names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, status: int, content: Any, headers: Mapping[str, str] | None = None) -> Reply:
        """Make a reply of what JSON takes."""
        body = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
        return cls(status, body, {**_SAFE, "Content-Type": "application/json", **(headers or {})})

    @classmethod
    def of_error(cls, status: int, name: str, text: str, **headers: str) -> Reply:
        """Make the reply of a failure."""
        told = {"code": status, "status": name, "message": text}
        return cls.of_json(status, {"error": told}, headers)


class Routes:
    """Answers requests by the same servicer as gRPC does.

    Args:
        servicers: by the service's name, once calls are taken.
        hall: what every call passes.
    """

    def __init__(self, servicers: Mapping[str, object], hall: Hall) -> None:
        """Read the page."""
        self._servicers, self._hall = servicers, hall
        folder = resources.files("siserve") / "page"
        self._page = {
            path: Reply(200, (folder / name).read_bytes(), {**_SAFE, "Content-Type": kind})
            for path, (name, kind) in _PAGE.items()
        }
        methods = DIALOG.methods_by_name
        document = make_document(
            {
                route: (summary, methods[name].input_type, methods[name].output_type)
                for route, (name, summary) in _CALLS.items()
            }
        )
        self._page["/openapi.json"] = Reply.of_json(200, document)

    async def answer(self, request: Request) -> Reply:
        """Answer a request, whatever it is."""
        path, _, query = request.path.partition("?")
        if path in self._page:
            if request.method in ("GET", "HEAD"):
                return self._page[path]
            return Reply.of_error(405, "UNIMPLEMENTED", f"{path} is read by GET", Allow="GET")
        if (request.method, path) in _CALLS:
            return await self._call(_CALLS[request.method, path][0], request, query)
        allowed = [method for method, known in _CALLS if known == path]
        if allowed:
            text = f"{path} is asked by {allowed[0]}"
            return Reply.of_error(405, "UNIMPLEMENTED", text, Allow=allowed[0])
        return Reply.of_error(404, "NOT_FOUND", "no such path; /openapi.json lists them")

    async def _call(self, name: str, request: Request, query: str) -> Reply:
        started, code = time.perf_counter(), grpc.StatusCode.OK
        metadata = tuple(request.headers.items())
        facts: dict[str, Any] = {"request_id": request_id(metadata), "door": "http"}
        told = {"X-Request-Id": facts["request_id"]}
        try:
            self._hall.calls.begin()
            caller = self._hall.gate.identify(metadata)
            facts["caller"] = caller.name
            message = _parse(name, request, query, self._hall.limits)
            call = Call(caller, time.monotonic() + DEADLINE_SECONDS, facts)
            reply = await getattr(self._servicers[DIALOG.full_name], name)(message, call)
            content = json_format.MessageToDict(reply, always_print_fields_with_no_presence=True)
            return Reply.of_json(200, content, told)
        except RequestError as error:
            code = code_of(error)
            if isinstance(error, TryLater):
                told["Retry-After"] = str(math.ceil(error.retry_after_s))
            return Reply.of_error(_HTTP[code], code.name, str(error), **told)
        except Exception:
            code = grpc.StatusCode.INTERNAL
            _log.exception("%s failed", name)
            text = "the server failed on this request; see its log"
            return Reply.of_error(500, code.name, text, **told)
        except BaseException:  # whoever asked is gone
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            self._hall.calls.end()
            seconds = time.perf_counter() - started
            self._hall.told(name, code.name, seconds, metadata, facts)


def _parse(name: str, request: Request, query: str, limits: RequestLimits) -> Message:
    """Read a request.

    Raises:
        InvalidRequest: naming the header, the field, the body or the query that is wrong.
    """
    kind = message_factory.GetMessageClass(DIALOG.methods_by_name[name].input_type)
    if request.method == "GET":
        return parse_query(kind, query)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidRequest(
            "Content-Type", f"must be application/json, got {media_type or 'none'!r}"
        )
    return parse_json(kind, request.body, limits)
