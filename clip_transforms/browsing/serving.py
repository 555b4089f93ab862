"""Serve a session on a socket, until a signal comes."""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections.abc import Callable
from typing import Any

from clip_transforms.browsing.session import Session

PORT = 8642
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")


class ServeError(ValueError):
    """A place where no page can be served, in one sentence."""


class Address:
    """Where a page is served.

    Attributes:
        socket: the open port.
        token: what whoever opens the page must know; empty for nothing.
        is_usual: whether the port is PORT, or the one that was asked for.
    """

    def __init__(self, host: str, port: int | None, with_token: bool):
        """Open the port, so that a wrong one is known before anything is read.

        Args:
            host: name or address to listen on.
            port: the port; None for PORT, or any other if that is taken.
            with_token: whether to ask for a token on this machine's own address too.
        Raises:
            ServeError: if it cannot be opened.
        """
        self._host = host
        if port is not None and not 0 <= port < 65_536:
            raise ServeError(f"--port is {port}, but it must be 1 to 65535, or 0 for any that is free")
        self.socket = _open(host, port)
        self.is_usual = port is not None or self.socket.getsockname()[1] == PORT
        self.token = secrets.token_urlsafe(24) if with_token or not self.is_local else ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self._host in _LOOPBACK

    @property
    def hosts(self) -> frozenset[str] | None:
        """Values of the header `Host` that are answered; None for all."""
        port = self.socket.getsockname()[1]
        if self._host in _EVERYWHERE:
            return None
        names = _LOOPBACK if self.is_local else (self._host,)
        bracketed = [f"[{name}]" if ":" in name else name for name in names]
        return frozenset(f"{name.lower()}:{port}" for name in bracketed) | (
            frozenset(bracketed) if port == 80 else set()
        )

    @property
    def url(self) -> str:
        """What a person opens."""
        name = socket.gethostname() if self._host in _EVERYWHERE else self._host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.socket.getsockname()[1]}/{f'?token={self.token}' if self.token else ''}"


def _open(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for wanted in (PORT, 0) if port is None else (port,):
        try:
            opened = socket.create_server((host, wanted), family=family, backlog=128)
            # Connections inherit it. asyncio would not set it for a socket of this kind, and every answer took 40 ms.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return opened
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is None and wanted:
                continue
            if error.errno == errno.EADDRINUSE:
                raise ServeError(f"--port {wanted} is in use; omit it for one that is free, or give another") from None
            if error.errno == errno.EACCES:
                raise ServeError(f"--port {wanted} may not be opened by you; give one above 1023") from None
            raise ServeError(
                f"--host {host} is no address of this machine: {error.strerror}; omit it for 127.0.0.1, or give 0.0.0.0"
            ) from None
    raise AssertionError("unreachable")


def serve(session: Session, address: Address, started: Callable[[], None]) -> None:
    """Answer requests until SIGINT or SIGTERM comes, then raise that signal again for the handler that was there.

    Args:
        session: what answers.
        address: where.
        started: is called when requests are answered.
    """
    import uvicorn

    from clip_transforms.browsing.app import make_app
    from clip_transforms.browsing.guard import Guard

    port = address.socket.getsockname()[1]
    app: Any = Guard(make_app(session), address.hosts, address.token, port)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        limit_concurrency=200,
    )
    session.start()
    asyncio.run(_serve(uvicorn.Server(config), address, started))


async def _serve(server: Any, address: Address, started: Callable[[], None]) -> None:
    serving = asyncio.create_task(server.serve([address.socket]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if server.started:
        started()
    await serving
