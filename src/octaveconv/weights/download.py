"""Downloading a published checkpoint: resumed where it was interrupted, checked, and complete or not there at all.

Until ``path`` is complete there are ``path.part`` (what has arrived), ``path.part.etag`` (version and length of the
file it belongs to) and ``path.lock`` (held by the downloading process) beside it. All three are gone once ``path`` is
there. None of them is written through a link that somebody put there.

The libraries that timm installs do not keep these promises: ``torch.hub`` neither resumes nor retries, and
``huggingface_hub`` resumes without ``If-Range``, so that it joins a file that changed to the part of the old one.
Neither stops when the server sends more than the known size, or hardly anything for ever.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError

from filelock import FileLock

from .._progress import eta, live
from .._text import say, shown
from . import _paced

TIMEOUT = 30.0  # seconds without data after which a connection counts as cut
WAITS = (1.0, 2.0, 4.0)  # seconds before each retry
SLOWEST, WINDOW = 10_000, 60.0  # bytes per second on average over so many seconds: below, a connection counts as cut
LONGEST = 6 * 3600.0  # seconds that a download may take, with all retries
MAX_BYTES = 2 << 30  # limit for a file of unknown length
BLOCK = 1 << 18

_ETAG = '"[!#-~]*"'  # strong: a weak one does not promise the same bytes
_LENGTH = r"(\d{1,18})"


class DownloadError(OSError):
    """A file could not be downloaded; the message is one line: what went wrong, then what to do."""


class _Cut(Exception):
    """This connection did not deliver the complete file; another one may."""


def fetch(url: str, path: Path, *, sha256: str | None = None, size: int | None = None) -> None:
    """Download the file at ``url`` to ``path``. A file that is already there is kept, unchecked.

    An interrupted download resumes where it stopped, in this call or the next, if the server sent an ETag. If several
    processes want the same file, one downloads it and the others wait. On a terminal a bar shows the progress.

    A connection that is silent for 30 s, or brings less than 10 kB/s over a minute, is closed; there are four tries,
    and six hours for all of them.

    Args:
        url: an http or https address; it may redirect to others, but not from https to http.
        path: where to put the file. It appears there complete and checked, or not at all.
        sha256: the file's digest in hexadecimal, if known.
        size: the file's length in bytes, if known.

    Raises:
        DownloadError: the message says why. What has arrived stays in ``path.part``, unless it proved wrong.
    """
    job = _Job(url, path, sha256, size, time.monotonic() + LONGEST)
    if not url.lower().startswith(("http://", "https://")):
        raise job.error("only http and https addresses can be downloaded")
    try:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(f"{path}.lock")
        with FileLock(lock):
            if not path.exists():  # another process may have downloaded it meanwhile
                _download(job)
            with suppress(OSError):  # safe now: whoever waits for the lock will find the file
                lock.unlink()
    except DownloadError:
        raise
    except NotImplementedError as error:
        raise job.error(f"{path.parent} is on a file system without locks") from error
    except OSError as error:  # errors of the network were handled below; this one is the disk's
        raise job.error(f"cannot write {error.filename or path} ({error.strerror or error})") from error


class _Kept(NamedTuple):
    """What has arrived: its length, and ETag and length of the whole file."""

    have: int = 0
    etag: str = ""
    total: int = 0


class _Job(NamedTuple):
    url: str
    path: Path
    sha256: str | None
    size: int | None
    end: float  # by the monotonic clock

    @property
    def part(self) -> Path:
        return Path(f"{self.path}.part")

    @property
    def etag(self) -> Path:
        return Path(f"{self.path}.part.etag")

    def kept(self) -> _Kept:
        """The part to resume; an empty one if there is none, or if its version is unknown, or it is a link."""
        try:
            part, note = self.part.lstat(), self.etag.lstat()
            if not all(stat.S_ISREG(file.st_mode) and file.st_nlink == 1 for file in (part, note)):
                return _Kept()
            match = re.fullmatch(rf"({_ETAG}) {_LENGTH}", self.etag.read_text("latin-1"))
        except FileNotFoundError:
            return _Kept()
        return _Kept(part.st_size, match[1], int(match[2])) if match and part.st_size else _Kept()

    def drop(self) -> None:
        """Delete the part."""
        self.part.unlink(missing_ok=True)
        self.etag.unlink(missing_ok=True)

    def error(self, text: str) -> DownloadError:
        """The error to raise: ``text``, then the cure, on one line whatever a server or a path contributed to it."""
        text = f"{text}: download {self.url} by other means and save it as {self.path}"
        return DownloadError(shown(text))

    def no_room(self, needed: int, free: int) -> DownloadError:
        """The error of a full disk; ``needed`` bytes are still to come, as far as known."""
        megabytes = -(-max(needed, 1) // 10**6)
        return self.error(f"the disk is full: needs {megabytes:,} MB at {self.path.parent}, {free // 10**6:,} MB free")


def _download(job: _Job) -> None:
    """Fill the part, with retries if needed, check it, and put it in place."""
    for wait in (*WAITS, None):
        try:
            _receive(job)
            break
        except _Cut as cut:
            if time.monotonic() > job.end:
                raise job.error(f"{cut}; it took longer than {LONGEST / 3600:g} hours") from cut
            if wait is None:
                raise job.error(f"{cut} ({len(WAITS) + 1} tries)") from cut
            time.sleep(wait)
    digest = _sync_and_hash(job.part)
    if job.sha256 is not None and digest != job.sha256.lower():
        job.drop()
        raise job.error(f"the downloaded file has sha256 {digest}, expected {job.sha256}")
    os.replace(job.part, job.path)
    job.drop()


def _sync_and_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        while block := file.read(BLOCK):  # all that is on the disk, earlier calls' parts included
            digest.update(block)
    return digest.hexdigest()


def _receive(job: _Job) -> None:
    """Complete the part over one connection."""
    kept = job.kept()
    have, total = kept.have, kept.total or None
    response = _open(job, kept)
    if response is None:
        return
    with response:
        theirs, coding = response.headers.get("ETag", ""), response.headers.get("Content-Encoding", "identity")
        if coding.lower() != "identity":
            raise job.error(f"the server sent the file encoded ({coding}), which was not asked for")
        if response.status == 206:  # without an ETag it may be of another version
            span = f"bytes {have}-{kept.total - 1}/{kept.total}"
            if not have or (theirs, response.headers.get("Content-Range", "").strip()) != (kept.etag, span):
                job.drop()
                raise _Cut("the server sent a different range than requested, or of another version")
        elif response.status == 200:  # the whole file: it is new, has changed, or the server has no ranges
            have, total = 0, response.length
        else:
            raise job.error(f"the server answered {_status(response.status)}")
        if total is not None and job.size not in (None, total):  # before the kept part is overwritten
            raise job.error(f"the server's file has {total:,} bytes, expected {job.size:,}")
        _store(job, response, have, theirs, job.size if total is None else total)


def _open(job: _Job, kept: _Kept) -> http.client.HTTPResponse | None:
    """Request the file from the end of the kept part on; None if that is its end."""
    headers = {"User-Agent": "octaveconv"}
    if kept.have:
        headers |= {"Range": f"bytes={kept.have}-", "If-Range": kept.etag}
    try:
        return _paced.request(job.url, headers, TIMEOUT, _paced.Pace(job.end, SLOWEST, WINDOW))
    except _paced.LeavesHTTP as error:
        raise job.error(f"the server redirects to {error}, which is not https or http as before") from error
    except HTTPError as error:
        with closing(error):
            _refused(job, kept, error)
        return None
    except URLError as error:
        why = f"the server cannot be reached ({_why(error.reason)})"
        raise (_Cut(why) if kept.have else job.error(why)) from error  # without a network, fail at once
    except (http.client.InvalidURL, ValueError) as error:
        raise job.error(f"this is not a valid address ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the server did not answer ({_why(error)})") from error


def _refused(job: _Job, kept: _Kept, error: HTTPError) -> None:
    """Return if the error says that the part is complete; raise `_Cut` where a retry may help."""
    if error.code == 416 and kept.have:
        theirs = error.headers.get("ETag", ""), error.headers.get("Content-Range", "").strip()
        if theirs == (kept.etag, f"bytes */{kept.have}") and kept.have == kept.total and job.size in (None, kept.have):
            return
        job.drop()
        raise _Cut("the part kept from an earlier call belongs to another file")
    text = f"the server answered {_status(error.code)}"
    if location := error.headers.get("Location"):
        text += f" and redirects to {location}"
    raise _Cut(text) if error.code in (408, 429) or error.code >= 500 else job.error(text)


def _store(job: _Job, response: http.client.HTTPResponse, have: int, etag: str, total: int | None) -> None:
    """Append the response's data to the first ``have`` bytes of the part, up to ``total``."""
    limit = MAX_BYTES if total is None else total
    needed = (total or 0) - (job.part.lstat().st_size if os.path.lexists(job.part) else 0)
    free = shutil.disk_usage(job.path.parent).free
    if needed > free:
        raise job.no_room(needed, free)
    try:
        if not have:  # so an ETag never stands beside another version's bytes, and nothing is written through a link
            job.drop()
        with _bar(job, have, total) as advance, open(job.part, "ab" if have else "xb") as file:
            if not have:
                with open(job.etag, "xb") as note:
                    note.write(f"{etag} {total}".encode("latin-1"))
            while block := _read(response, have, total):
                have += len(block)
                if have > limit:
                    break
                file.write(block)
                advance(len(block))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise job.no_room((total or 0) - have, shutil.disk_usage(job.path.parent).free) from error
    if have > limit:
        job.drop()
        raise job.error(f"the server sent more than the expected {limit:,} bytes")


@contextmanager
def _bar(job: _Job, have: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, or a line without rich; yields a function that takes the length of each block."""
    start, received = time.perf_counter(), 0
    with live(in_bytes=True, stderr=True) as bars:
        if bars is None and sys.stderr.isatty():
            say(f"downloading {job.path.name}", error=True)
        task = None if bars is None else bars.add_task(shown(job.path.name), total=total, completed=have, figures="")

        def advance(size: int) -> None:
            nonlocal received
            received += size
            if bars is not None:
                left = eta(received, total and total - have, time.perf_counter() - start)
                bars.update(task, advance=size, figures=left)

        yield advance


def _read(response: http.client.HTTPResponse, have: int, total: int | None) -> bytes:
    """The next block; empty at the end. Raises `_Cut` if the end comes before ``total``."""
    where = f"after {have:,} of {'?' if total is None else format(total, ',')} bytes"
    try:
        block = response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection was cut {where} ({_why(error)})") from error
    if not block and total is not None and have < total:
        raise _Cut(f"the connection was cut {where}")
    return block


def _status(code: int) -> str:
    return f"{code} {http.client.responses.get(code, '')}".strip()


def _why(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no data for {TIMEOUT:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
