"""HTTP requests that end: every read, of headers too, is held to a slowest pace and to a last moment.

``urlopen`` has a limit for the silence between two bytes alone, so that a server can send one byte a second for ever.
"""

from __future__ import annotations

import http.client
import io
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener


class TooSlow(OSError):
    """A connection brings hardly anything, or its time is over."""


class LeavesHTTP(Exception):
    """A redirect leads to an address that is neither http nor https, or from https to http; the message is that."""


@dataclass
class Pace:
    """What a connection is held to.

    Args:
        end: the last moment, by the monotonic clock.
        slowest: bytes per second, on average over ``window`` seconds.
    """

    end: float
    slowest: float
    window: float
    since: float = field(default_factory=time.monotonic)
    count: int = 0

    def check(self) -> None:
        """Raise `TooSlow` if it is."""
        now = time.monotonic()
        if now > self.end:
            raise TooSlow("the time for this download is over")
        if now - self.since >= self.window:
            if self.count < self.slowest * self.window:
                raise TooSlow(f"less than {self.slowest / 1000:g} kB/s for {self.window:g} s")
            self.since, self.count = now, 0


def request(url: str, headers: dict[str, str], timeout: float, pace: Pace) -> http.client.HTTPResponse:
    """Open an address.

    Raises:
        TooSlow, LeavesHTTP: see there.
        Exception: what ``urlopen`` raises.
    """
    opener = build_opener(_HTTP(pace), _HTTPS(pace), _Redirects())
    return opener.open(Request(url, headers=headers), timeout=timeout)  # type: ignore[no-any-return]


class _Bytes(io.RawIOBase):
    """The bytes of a connection."""

    def __init__(self, raw: Any, pace: Pace) -> None:
        self.raw, self.pace = raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.pace.check()
        count: int | None = self.raw.readinto(buffer)
        self.pace.count += count or 0
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Paced:
    """Makes the connections of a handler."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def connection(self, kind: type[http.client.HTTPConnection]) -> Any:
        pace = self.pace

        class Response(http.client.HTTPResponse):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.fp = io.BufferedReader(_Bytes(self.fp.detach(), pace))  # type: ignore[has-type]

        class Connection(kind):  # type: ignore[misc, valid-type]
            response_class = Response

        return Connection


class _HTTP(_Paced, HTTPHandler):
    def http_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(self.connection(http.client.HTTPConnection), req)


class _HTTPS(_Paced, HTTPSHandler):
    def https_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(self.connection(http.client.HTTPSConnection), req)


class _Redirects(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise LeavesHTTP(newurl)
        if fp is not None:
            fp.close()  # urllib would read all of its body, which need not end
        return super().redirect_request(req, fp, code, msg, headers, newurl)
