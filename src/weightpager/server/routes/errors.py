"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from weightpager.errors import (
    BudgetError,
    BusyError,
    ConfigError,
    ConflictError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    ServerClosedError,
    StoreError,
    SwitchFailedError,
    TaskNotActiveError,
    TaskTooLargeError,
    UnknownTaskError,
    WeightpagerError,
    shown,
)
from weightpager.server.routes.exchange import ClientGoneError
from weightpager.server.schema import ErrorAnswer, ErrorDetail

_log = logging.getLogger(__name__)

_KINDS: tuple[tuple[type[WeightpagerError], int, str, str | None], ...] = (
    (UnknownTaskError, 404, "invalid_request_error", "model_not_found"),
    (ConflictError, 409, "invalid_request_error", "conflict"),
    (RequestError, 400, "invalid_request_error", None),
    (ConfigError, 400, "invalid_request_error", None),
    (TaskNotActiveError, 409, "invalid_request_error", None),
    (QueueFullError, 429, "rate_limit_error", "queue_full"),
    (RequestTimeoutError, 504, "timeout_error", "timeout"),
    (ServerClosedError, 503, "server_error", "shutting_down"),
    (TaskTooLargeError, 507, "server_error", "budget_too_small"),
    (BudgetError, 503, "server_error", "budget"),
    (BusyError, 503, "server_error", "busy"),
    (SwitchFailedError, 503, "server_error", "switch_failed"),
    (StoreError, 503, "server_error", "storage"),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
GONE = 499
"""The status that nginx logs when a client goes away before the answer."""

_EXPECTED = {
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "int_parsing": "a valid integer",
    "int_from_float": "a valid integer",
    "float_parsing": "a valid number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}
"""What is expected, where pydantic says it in words of its own."""

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": words}
    for status, words in {
        400: "The request is wrong.",
        401: "The token is missing or wrong.",
        404: "The bundle has no such task.",
        409: "The server's present state forbids it.",
        413: "The body is too large.",
        422: "The request is wrong.",
        429: "Too many requests wait; `Retry-After` says when to ask again.",
        503: "The server can't do it now; `Retry-After` says when to ask again.",
        504: "The request took too long.",
        507: "The server's budget never holds the task.",
    }.items()
}
"""What the OpenAPI description says of errors."""


def register(app: FastAPI, retry_after: int) -> None:
    """Answer every known error in OpenAI's form; `RequestLog` answers the others."""
    retry = {"Retry-After": str(retry_after)}
    headers = {429: retry, 503: retry, 507: {"x-should-retry": "false"}}  # OpenAI's clients retry other errors from 500

    async def ours(request: Request, error: Exception) -> JSONResponse:
        status, detail = describe(error, "task" if request.url.path.startswith("/admin/") else "model")
        return answer(status, detail, headers.get(status))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        field, problem = _first(error.errors())
        message = f"{field or 'body'}: {problem}"
        if not field and "json" not in (kind := request.headers.get("content-type", "none")):
            message = f"body: expected one with 'Content-Type: application/json', found {kind}"
        return answer(400, ErrorDetail(message=message, type="invalid_request_error", param=field))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = _TYPES.get(error.status_code, "invalid_request_error")
        return answer(error.status_code, ErrorDetail(message=_said(request, error), type=kind), error.headers)

    async def unheard(_: Request, __: Exception) -> Response:
        return Response(status_code=GONE)

    app.add_exception_handler(ClientGoneError, unheard)
    app.add_exception_handler(WeightpagerError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _first(problems: Sequence[Any]) -> tuple[str | None, str]:
    """The field that is to blame, and why. If the field may have several forms, the one that fits furthest is meant."""
    field = problems[0]["loc"][:2]
    problem = max((each for each in problems if each["loc"][:2] == field), key=_fit)
    if problem["type"] == "json_invalid":
        return None, f"expected JSON, found none from character {problem['loc'][-1]} on"
    # pydantic adds names of its own to the path, such as that of a form; they name no field.
    path = [str(part) for part in problem["loc"][1:] if isinstance(part, int) or part.isidentifier()]
    return ".".join(path) or None, _in_words(problem)


def _in_words(problem: Mapping[str, Any]) -> str:
    """What was expected and what was found; pydantic tells the former only."""
    kind, found, most = problem["type"], problem["input"], problem.get("ctx", {}).get("max_length")
    if kind == "none_required" or most == 0:
        return "not supported; leave it out"
    if kind == "extra_forbidden":
        return "unknown field; leave it out"
    if kind == "missing":
        return "expected a value, found nothing"
    part = "character" if isinstance(found, str) else "item"
    if kind.endswith("too_short"):  # no field has another least length
        return f"expected at least one {part}, found none"
    if kind.endswith("too_long"):
        return f"expected at most {most} {part}s, found {len(found)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    expected = _EXPECTED.get(kind, message.removeprefix("Input should be "))
    if expected.startswith(("greater ", "less ")):
        expected = f"a number {expected}"
    said = type(found).__name__ if isinstance(found, (dict, list)) else shown(found)
    return message if expected == message else f"expected {expected}, found {said}"


def _fit(problem: Mapping[str, Any]) -> tuple[int, bool]:
    """How far a value fits the form that a problem is of: how deep it is, and whether it was of the right type."""
    return len(problem["loc"]), not problem["type"].endswith("_type")


def _said(request: Request, error: HTTPException) -> str:
    cause = error.__cause__
    if isinstance(cause, UnicodeDecodeError):
        return _no_utf8(cause.object)
    if isinstance(cause, RecursionError):
        return "body: expected JSON, found values inside too many others"
    if error.detail in ("Not Found", "Method Not Allowed"):  # the framework's own: ours name what was not found
        found = f"{request.method} {request.url.path}"
        return f"expected one of the routes that /docs lists, found {found}; {_meant(request)}"
    return error.detail


def _meant(request: Request) -> str:
    """What a request probably meant that no route answers."""
    path, routes = request.url.path.rstrip("/"), request.app.state.routes
    # A base URL without its /v1 is the commonest slip.
    close = [route for route in routes if path and route.endswith(path)] or difflib.get_close_matches(path, routes, 1)
    if close:
        return f"did you mean {routes[close[0]]} {close[0]}?"
    return "the base URL of OpenAI's clients ends in /v1"


def _no_utf8(body: bytes) -> str:
    # The JSON module guesses other encodings from the first bytes, and tells of their errors.
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"body: expected JSON in UTF-8, found the byte {body[error.start]:#04x} at {error.start}"
    return "body: expected JSON in UTF-8, found another encoding"


def describe(error: Exception, field: str = "model") -> tuple[int, ErrorDetail]:
    """An error's status and body, ``field`` naming the task. What clients shouldn't see goes to the log only."""
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            refusal = error if isinstance(error, RequestError) else None
            param = refusal.param if refusal else field if kind is UnknownTaskError else None
            detail = ErrorDetail(
                message=str(error), type=name, param=param, code=(refusal.code if refusal else None) or code
            )
            return status, detail
    _log.error("a request failed: %s", error, exc_info=error)
    return 500, ErrorDetail(message="the server failed; its log says why", type="server_error")


def answer(status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response. Characters from a client that aren't Unicode are replaced."""
    shown = detail.model_copy(update={"message": detail.message.encode("utf-8", "replace").decode()})
    return JSONResponse(ErrorAnswer(error=shown).model_dump(), status, headers=dict(headers or {}))
