"""The Starlette application: what each address answers. Everything that takes time happens in threads."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clip_transforms.browsing.question import QuestionError
from clip_transforms.browsing.session import Session

_MOST_JSON = 2 << 20  # bytes of a question
_MOST_WAITING = 16  # questions, or uploads, that wait for one another
_NOT_KEPT = {"cache-control": "no-store"}
_FILES = {
    "/": ("browse.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/browse.css": ("browse.css", "text/css"),
    "/browse.js": ("browse.js", "text/javascript"),
}


class _TooLargeError(Exception):
    """The body of a request is larger than allowed."""


class _Line:
    """Does one thing after the other in a thread; a line that is too long is not joined."""

    def __init__(self, name: str):
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting = 0

    async def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._waiting >= _MOST_WAITING:
            raise QuestionError("too much is asked at once; try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        finally:
            self._waiting -= 1


def make_app(session: Session) -> Starlette:
    """Return the application; `Guard` belongs in front of it."""
    questions, uploads, looks = _Line("questions"), _Line("uploads"), _Line("samples")

    async def state(_: Request) -> Response:
        return _json(session.state())

    async def search(request: Request) -> Response:
        return _json(await questions.do(session.answer, await _asked(request)))

    async def upload(request: Request) -> Response:
        data = await _body(request, session.plan.reader.max_image_bytes)
        vector = await uploads.do(session.embed, data)
        return _json({"vector": base64.b64encode(vector).decode()})

    async def sample(request: Request) -> Response:
        return _json(await looks.do(session.sample, request.path_params["place"]))

    async def picture(request: Request) -> Response:
        whole = request.path_params["kind"] == "whole"
        shown = await asyncio.wrap_future(session.picture(request.path_params["place"], whole))
        if shown.image is None:
            return JSONResponse({"lost": shown.lost}, 404, _NOT_KEPT)
        return Response(shown.image, 200, {"cache-control": "private, max-age=3600"}, "image/webp")

    async def selection(request: Request) -> Response:
        asked = await _asked(request)
        named = await looks.do(session.named, asked.get("rows") if isinstance(asked, dict) else None)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([("shard", "row"), *named])
        return Response(text.getvalue(), 200, _NOT_KEPT, "text/csv")

    routes = [
        *(Route(path, _file(*of)) for path, of in _FILES.items()),
        Route("/api/state", state),
        Route("/api/search", search, methods=["POST"]),
        Route("/api/picture", upload, methods=["POST"]),
        Route("/api/sample/{place:int}", sample),
        Route("/api/selection", selection, methods=["POST"]),
        Route("/picture/{version}/{kind}/{place:int}", picture),
    ]
    failures: dict[Any, Any] = {
        QuestionError: _refused,
        _TooLargeError: _too_large,
        ClientDisconnect: _gone,
        Exception: _failed,
    }
    return Starlette(routes=routes, exception_handlers=failures)


def _file(name: str, kind: str) -> Callable[[Request], Any]:
    """Return what answers with a file of ours."""
    data = (resources.files("clip_transforms.pages") / "templates" / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(data, 200, {"cache-control": "no-cache"}, f"{kind}; charset=utf-8")

    return answer


async def _body(request: Request, most: int) -> bytes:
    """Read a body; a longer one is not read to its end."""
    length = request.headers.get("content-length", "")
    if length and (not length.isdecimal() or int(length) > most):
        raise _TooLargeError(f"that has more than {most:,} bytes, which is the most that is taken")
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > most:
            raise _TooLargeError(f"that has more than {most:,} bytes, which is the most that is taken")
    return bytes(data)


async def _asked(request: Request) -> Any:
    try:
        return json.loads(await _body(request, _MOST_JSON))
    except (ValueError, RecursionError):
        raise QuestionError("the question is no JSON") from None


def _json(value: Any) -> Response:
    return Response(json.dumps(value).encode("utf-8", "replace"), 200, _NOT_KEPT, "application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, QuestionError)
    return JSONResponse({"error": _encodable(str(error)), "field": error.field}, 400, _NOT_KEPT)


async def _too_large(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error), "field": "picture"}, 413, {**_NOT_KEPT, "connection": "close"})


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # the browser has gone; nobody reads this


async def _failed(_: Request, error: Exception) -> Response:
    said = " ".join(str(error).split()) or type(error).__name__
    return JSONResponse({"error": f"this machine failed to answer: {_encodable(said)}", "field": ""}, 500, _NOT_KEPT)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
