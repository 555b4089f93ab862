"""The guard in front of the page: whose requests are answered, and what a browser may do with the answers.

A page of somebody else, open in the same browser, can send requests to this machine. It cannot read the answers, unless
its name is made to mean this machine (DNS rebinding), which the check of `Host` prevents. It can still post and embed
pictures blindly, which the checks of `Origin` and `Sec-Fetch-Site` prevent.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_COOKIE_SECONDS = 30 * 24 * 3_600


class Guard:
    """An ASGI application that answers only requests of the own page, and hands these on."""

    def __init__(self, app: App, hosts: frozenset[str] | None, token: str = "", port: int = 0):
        """Guard an application.

        Args:
            app: the application.
            hosts: values of `Host` that are answered; None for all, which takes a token.
            token: what a request must know; empty for nothing.
            port: the port, for the name of the cookie: cookies do not tell ports apart.
        """
        assert token or hosts is not None
        self._app, self._hosts, self._token = app, hosts, token
        self._cookie = f"clip_transforms_browse_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, said = self._refused(scope, headers)
        if status:
            await _reply(send, status, said)
        elif self._token and self._is_asked_by_link(scope):
            # Not `Strict`: a browser would not send it after a click on the link in a chat.
            cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Lax; Path=/; Max-Age={_COOKIE_SECONDS}"
            await _reply(send, 303, "", {"location": "/", "set-cookie": cookie})
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str]:
        """Return the status and the reason of a refusal; 0 if there is none."""
        host = headers.get("host", "")
        if self._hosts is not None and host.lower() not in self._hosts:
            return 421, "this address is not the page's; open the one that the command printed"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return 403, "another site must not ask this page"
        site = headers.get("sec-fetch-site", "same-origin")
        is_page = scope["path"] == "/" and headers.get("sec-fetch-mode", "navigate") == "navigate"
        if site not in ("same-origin", "none") and not is_page:
            return 403, "another site must not ask this page"
        if scope["method"] not in ("GET", "HEAD") and headers.get("x-clip-transforms") != "browse":
            return 403, "another site must not ask this page"  # a form of HTML cannot send such a header
        if self._token and not (self._knows(headers) or self._is_asked_by_link(scope)):
            return 401, "open the whole address that the command printed, with its token"
        return 0, ""

    def _knows(self, headers: dict[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._token.encode())

    def _is_asked_by_link(self, scope: Scope) -> bool:
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given]
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return sent


async def _reply(send: Send, status: int, said: str, more: dict[str, str] | None = None) -> None:
    body = f"{said}\n".encode() if said else b""
    headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), "connection": "close"}
    headers |= {"cache-control": "no-store", **HEADERS, **(more or {})}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
