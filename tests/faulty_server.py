"""A proxy that fails as storage does on a bad day, for use in front of a real S3 server on loopback (moto)."""

import contextlib
import http.client
import http.server
import threading
import time

HANG_SECONDS = 0.8  # longer than the client's timeout of half a second

ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>%s</Message></Error>"
STATUSES = {
    "500": (500, ERROR % (b"InternalError", b"We encountered an internal error")),
    "503": (503, ERROR % (b"SlowDown", b"Please reduce your request rate")),
    "403": (403, ERROR % (b"AccessDenied", b"Access Denied")),
    "404": (404, ERROR % (b"NoSuchKey", b"The specified key does not exist.")),
}


class FaultyProxy:
    """Forwards requests to a server, except those for which `fault` returns a fault.

    `fault(number, method, path)` returns None, a key of STATUSES, or one of `hang` (no answer), `cut` (half of the
    body, then the connection breaks), `slow` (the body in pieces), `reset` (the connection breaks before the request is
    forwarded) and `deaf` (the request is carried out, but the connection breaks before the answer).
    """

    def __init__(self, port):
        self.seen = []  # (method, path, fault)
        self.ranges = []  # the Range headers of the requests
        self.fault = lambda number, method, path: None
        self.lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                with contextlib.suppress(ConnectionError, TimeoutError):
                    return super().handle_one_request()
                self.close_connection = True

            def log_message(self, *_):
                pass

            def handle_expect_100(self):
                return super().handle_expect_100()

            def do(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy.lock:
                    fault = proxy.fault(len(proxy.seen), self.command, self.path)
                    proxy.seen.append((self.command, self.path, fault))
                    proxy.ranges.append(self.headers.get("Range"))
                proxy.answer(self, body, port, fault)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def answer(self, handler, body, port, fault):
        handler.close_connection = fault in ("hang", "cut", "reset", "deaf")
        if fault == "reset":
            return
        if fault == "hang":
            time.sleep(HANG_SECONDS)
            return
        if fault in STATUSES:
            status, data = STATUSES[fault]
            headers = [("Content-Type", "application/xml")]
        else:
            status, headers, data = forward(port, handler, body)
        if fault == "deaf":
            return
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                handler.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), len(data))
        handler.send_header("Content-Length", length if handler.command == "HEAD" else len(data))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault == "cut":
            data = data[: len(data) // 2]
        pieces = [data[i : i + 1 + len(data) // 4] for i in range(0, len(data), 1 + len(data) // 4)]
        for piece in pieces:
            handler.wfile.write(piece)
            time.sleep(0.05 if fault == "slow" else 0)

    def faults(self, method=None):
        return [fault for m, _, fault in self.seen if fault and method in (None, m)]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def forward(port, handler, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in ("expect",)}
        connection.request(handler.command, handler.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()
