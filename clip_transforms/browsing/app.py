"""The Starlette application: what each address answers. Everything that takes time happens in threads."""

from __future__ import annotations

import asyncio
import base64
import csv
import functools
import io
import json
from collections.abc import Awaitable, Callable
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
_QUESTIONS, _UPLOADS = 16, 3  # at once; an upload may be 64 MB
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
    """Does one thing after the other in a thread. Only who is in it holds the body of a request; it can be full."""

    def __init__(self, name: str, most: int):
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._most, self._inside = most, 0

    async def __aenter__(self) -> Callable[..., Awaitable[Any]]:
        if self._inside >= self._most:
            raise QuestionError("too much is asked at once; try again in a moment")
        self._inside += 1
        return functools.partial(asyncio.get_running_loop().run_in_executor, self._threads)

    async def __aexit__(self, *_: object) -> None:
        self._inside -= 1


def make_app(session: Session) -> Starlette:
    """Return the application; `Guard` belongs in front of it."""
    questions, uploads, looks = (
        _Line("questions", _QUESTIONS),
        _Line("uploads", _UPLOADS),
        _Line("samples", _QUESTIONS),
    )

    async def state(_: Request) -> Response:
        return _json(session.state())

    async def search(request: Request) -> Response:
        async with questions as do:
            return _json(await do(session.answer, await _asked(request)))

    async def upload(request: Request) -> Response:
        async with uploads as do:
            vector = await do(session.embed, await _body(request, session.plan.reader.max_image_bytes))
        return _json({"vector": base64.b64encode(vector).decode()})

    async def sample(request: Request) -> Response:
        async with looks as do:
            return _json(await do(session.sample, request.path_params["place"]))

    async def picture(request: Request) -> Response:
        whole = request.path_params["kind"] == "whole"
        # Others may wait for the same picture, so nobody may cancel it.
        shown = await asyncio.shield(asyncio.wrap_future(session.picture(request.path_params["place"], whole)))
        if shown.image is None:
            return JSONResponse({"lost": shown.lost}, 404, _NOT_KEPT)
        return Response(shown.image, 200, {"cache-control": "private, max-age=3600"}, "image/webp")

    async def selection(request: Request) -> Response:
        async with looks as do:
            asked = await _asked(request)
            named = await do(session.named, asked.get("rows") if isinstance(asked, dict) else None)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([("shard", "row", "key"), *named])
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
        **dict.fromkeys((OSError, ValueError, MemoryError, RuntimeError), _failed),
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
