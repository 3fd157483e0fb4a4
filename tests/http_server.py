"""A file server on this machine that can be told to misbehave.

with FileServer({"a.bin": b"..."}) as server: fetch(server.url("a.bin"), path)
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock


@dataclass(frozen=True)
class Reply:
    """How one request is answered; the default is how a good server does it."""

    status: int | None = None  # an error, with no more to it
    headers: dict[str, str] = field(default_factory=dict)  # in place of the right ones; "" leaves one away
    ranges: bool = True  # serve them
    if_range: bool = True  # look at it
    cut: int | None = None  # close the connection after so many bytes of the body
    hang: int | None = None  # send so many bytes of the body, then nothing
    chunked: bool = False  # instead of Content-Length
    gate: threading.Event | None = None  # wait for it before the answer
    drip: int | None = None  # send so many bytes of the body at a time, with 10 ms between
    slow_head: bool = False  # the same for the headers


class FileServer:
    """Serves ``files``, by name, with Range, If-Range and ETag.

    ``replies`` are used up one per request, then comes ``usual``. ``requests`` are the headers of those that came.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.replies: list[Reply] = []
        self.usual = Reply()
        self.requests = []
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._no_proxy = mock.patch.dict("os.environ", {"no_proxy": "127.0.0.1"})

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [headers["Range"] for headers in self.requests]

    def __enter__(self) -> FileServer:
        self._no_proxy.start()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._no_proxy.stop()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_) -> None:
        """Say nothing: clients hang up."""


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer

    def do_GET(self) -> None:
        owner = self.owner
        owner.requests.append(self.headers)
        reply = owner.replies.pop(0) if owner.replies else owner.usual
        if reply.gate:
            reply.gate.wait(10)
        body = owner.files.get(self.path.lstrip("/"))
        if body is None or (reply.status or 200) >= 400:
            return self.send_error(reply.status or 404)
        etag = reply.headers.get("ETag", f'"{hashlib.sha256(body).hexdigest()[:16]}"')
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if not asked or not reply.ranges or (reply.if_range and self.headers["If-Range"] not in (None, etag)):
            return self._send(reply, reply.status or 200, {"ETag": etag}, body)
        start = int(asked[1])
        if start >= len(body):
            return self._send(reply, 416, {"ETag": etag, "Content-Range": f"bytes */{len(body)}"}, b"")
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self._send(reply, 206, {"ETag": etag, "Content-Range": span}, body[start:])

    def _send(self, reply: Reply, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        headers["Transfer-Encoding" if reply.chunked else "Content-Length"] = (
            "chunked" if reply.chunked else str(len(body))
        )
        for name, value in (headers | reply.headers).items():
            if value:
                self.send_header(name, value)
        if reply.slow_head:
            head, self._headers_buffer = b"".join(self._headers_buffer), []
            return self._drip(reply, head + bytes(10_000))
        self.end_headers()
        if reply.drip:
            return self._drip(reply, body)
        sent = body[: reply.cut if reply.hang is None else reply.hang]
        self.wfile.write(b"%x\r\n%b\r\n" % (len(sent), sent) if reply.chunked else sent)
        if reply.hang is not None:
            self.owner._closing.wait(10)
        elif reply.chunked and reply.cut is None:
            self.wfile.write(b"0\r\n\r\n")

    def _drip(self, reply: Reply, content: bytes) -> None:
        for at in range(0, len(content), reply.drip):
            self.wfile.write(content[at : at + reply.drip])
            if self.owner._closing.wait(0.01):
                return

    def log_message(self, *_) -> None:
        """Say nothing."""
