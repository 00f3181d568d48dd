"""Server of the page, for one user of this machine: Starlette behind a secret path.

All paths begin with a token, so that no other page and no other user can guess them; the Host header must name this
machine, so that no domain that resolves to it can be used; and the page may connect to nothing but this server.
"""

from __future__ import annotations

import json
import os
import secrets
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparse3dunet.annotate.browser.drawing import as_slice, inflated
from sparse3dunet.annotate.browser.scan import nifti
from sparse3dunet.annotate.browser.session import OutdatedError, ReplacedError, Session
from sparse3dunet.errors import TRACEBACK_VARIABLE, DataError, readable

HOSTS = ("127.0.0.1", "localhost")
STATIC = Path(__file__).parent / "static"
FILES = ("style.css", "app.js", "viewer.js", "api.js", "panel.js", "niivue.js", "LICENSE.niivue.txt")
LARGEST_BODY = 2**26
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_app(session: Session, token: str) -> ASGIApp:
    """Return the server's application.

    Args:
        session: what the page sees and changes.
        token: the first part of all paths.
    """
    pages = _Pages(session)
    routes = [
        Route("/", pages.index),
        Route("/static/{name}", pages.static),
        Route("/report", pages.report),
        Route("/api/state", _answer(lambda request: session.as_json())),
        Route("/api/scan.nii", pages.scan),
        Route("/api/prediction.nii", pages.prediction),
        Route("/api/confidence.nii", pages.confidence),
        Route("/api/painted", pages.painted),
        Route("/api/slice", pages.paint, methods=["PUT"]),
        Route("/api/finished", _answer(lambda request: session.finish(*_finish(request))), methods=["POST"]),
        Route(
            "/api/accept",
            _answer(lambda request: session.accept(*_finish(request), _number(request, "version"))),
            methods=["POST"],
        ),
        Route("/api/undo", _answer(lambda request: session.undo(_number(request, "after"))), methods=["POST"]),
        Route("/api/classes", pages.classes, methods=["POST"]),
        Route("/api/densify", _answer(lambda request: session.densify(_minutes(request))), methods=["POST"]),
        Route("/api/stop", _answer(lambda request: session.stop()), methods=["POST"]),
        Route("/api/export", _answer(lambda request: session.export()), methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, DataError: _data_error}
    handlers |= dict.fromkeys((OSError, MemoryError, Exception), _other_error)  # uvicorn logs the last, too
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return TrustedHostMiddleware(_Guard(app, token), allowed_hosts=list(HOSTS), www_redirect=False)


def _finish(request: Request) -> tuple[int, int, bool, int]:
    axis, index = _number(request, "axis"), _number(request, "index")
    return axis, index, _flag(request, "finished"), _number(request, "after")


class _Json(JSONResponse):
    """JSON in ASCII, as names of files may be no UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class _Guard:
    """Let only paths with the token pass, without it, and add the headers to each answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        given, _, rest = scope["path"].lstrip("/").partition("/")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = {"Content-Security-Policy": POLICY, **HEADERS}.items()
                pairs = [(name.lower().encode(), value.encode()) for name, value in extra]
                message["headers"] = [*message["headers"], *(pair for pair in pairs if pair[0] not in present)]
            await send(message)

        if not secrets.compare_digest(given.encode(), self.token.encode()):
            answer = _error(403, "this address has no valid token; open the one that the command printed.")
            await answer(scope, receive, send_with_headers)
            return
        if not rest and not scope["path"].endswith("/"):  # there, the page's relative addresses would lead elsewhere
            await RedirectResponse(f"{self.token}/")(scope, receive, send_with_headers)
            return
        inner = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode(), "root_path": ""}
        await self.app(inner, receive, send_with_headers)


class _Pages:
    """Handlers that return files or voxels, or read a body."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def index(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            raise HTTPException(404, f"there is no file {name[:80]!r}.")
        return FileResponse(STATIC / name)

    def report(self, request: Request) -> Response:
        path = self.session.folder / "report.html"
        if not path.is_file():
            raise HTTPException(404, "there is no report yet; it is written at the end of a run.")
        return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})

    def scan(self, request: Request) -> Response:
        return _binary(self.session.scan.shown(_number(request, "channel", 0)))

    def prediction(self, request: Request) -> Response:
        return _binary(nifti(self.session.found(_number(request, "version")).numbers, self.session.scan.spacing))

    def confidence(self, request: Request) -> Response:
        return _binary(nifti(self.session.found(_number(request, "version")).confidence, self.session.scan.spacing))

    def painted(self, request: Request) -> Response:
        return _binary(self.session.painted())

    async def paint(self, request: Request) -> Response:
        axis, index, after = (_number(request, name) for name in ("axis", "index", "after"))
        shape = self.session.drawing.slice_of(axis, index).shape
        body = await _body(request)
        if request.headers.get("content-encoding") == "gzip":
            body = inflated(body, shape[0] * shape[1], gzip=True)
        voxels = as_slice(body, shape)
        return _Json(await run_in_threadpool(self.session.paint, axis, index, voxels, after))

    async def classes(self, request: Request) -> Response:
        after = _number(request, "after")
        await _body(request)
        try:
            entries = await request.json()
        except (ValueError, RecursionError) as error:
            raise DataError("the classes are not valid JSON.") from error
        return _Json(await run_in_threadpool(self.session.set_classes, entries, after))


def _answer(function: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Response]:
    """Return a handler that returns a function's value as JSON."""

    def handler(request: Request) -> Response:
        return _Json(function(request))

    return handler


def _binary(content: bytes) -> Response:
    return Response(content, media_type="application/octet-stream")


async def _body(request: Request) -> bytes:
    """Return the body of a request, unless it is too large."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > LARGEST_BODY:
        raise HTTPException(413, f"the request has {length or 'unknown'} bytes; expected at most {LARGEST_BODY}.")
    return await request.body()


def _number(request: Request, name: str, default: int | None = None) -> int:
    text = request.query_params.get(name, "" if default is None else str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise DataError(f"{name} is {text[:40]!r}; expected a whole number of at least 0.")
    return int(text)


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "")
    if text not in ("true", "false"):
        raise DataError(f"{name} is {text[:40]!r}; expected true or false.")
    return text == "true"


def _minutes(request: Request) -> float:
    text = request.query_params.get("minutes", "")
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"minutes is {text[:40]!r}; expected a number above 0.") from error


def _error(status: int, message: str) -> Response:
    return _Json({"error": " ".join(message.split())}, status)


def _http_error(request: Request, error: HTTPException) -> Response:
    unknown = {404: "there is no such page.", 405: f"{request.method} is not possible here."}
    text = unknown.get(error.status_code, "") if error.detail in ("Not Found", "Method Not Allowed") else error.detail
    return _error(error.status_code, text or error.detail)


def _data_error(request: Request, error: DataError) -> Response:
    statuses = {OutdatedError: 409, ReplacedError: 412}  # the page stops at the first, and goes on after the second
    return _error(statuses.get(type(error), 400), str(error))


def _other_error(request: Request, error: Exception) -> Response:
    told = readable(error)
    if told is None or os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    return _error(500, told or f"{type(error).__name__}: {error}"[:300])
