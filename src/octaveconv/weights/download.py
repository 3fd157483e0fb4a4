"""Fetching a published checkpoint: resumed where it was cut, checked, and never half there.

Beside ``path`` lie, while it is not yet complete, ``path.part`` (what came so far), ``path.part.etag`` (which version
of the file that is) and ``path.lock`` (held by the process that fetches). All three are gone once ``path`` is there.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

TIMEOUT = 30.0  # seconds without a byte, after which a connection counts as cut
WAITS = (1.0, 2.0, 4.0)  # seconds before each further try
MAX_BYTES = 2 << 30  # of a file whose length nobody tells
BLOCK = 1 << 18

_ETAG = re.compile(r'"[!#-~]*"')  # a strong one: only that promises the same bytes
_LENGTH = r"(\d{1,18})"


class DownloadError(OSError):
    """A file could not be fetched; the message is one line: what went wrong, then what to do."""


class _Cut(Exception):
    """This connection brought no complete file; another one may."""


def fetch(url: str, path: Path, *, sha256: str | None = None, size: int | None = None) -> None:
    """Bring the file at ``url`` to ``path``, unless something is there already: that is left alone, unchecked.

    An interrupted download goes on where it stopped, in this call or the next, if the server gave an ETag. Several
    processes may ask for one file: one fetches it, the others wait. A bar shows the progress on a terminal.

    Args:
        url: an http or https address.
        path: where to put the file. It appears there complete and checked, or not at all.
        sha256: the file's digest in hexadecimal, if known.
        size: the file's length in bytes, if known.

    Raises:
        DownloadError: with a complete message. What came so far stays in ``path.part``, unless it proved wrong.
    """
    job = _Job(url, path, sha256, size)
    if not url.lower().startswith(("http://", "https://")):
        raise job.error("only http and https addresses can be fetched")
    try:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(f"{path}.lock")
        with FileLock(lock):
            if not path.exists():  # another process may have brought it meanwhile
                _download(job)
            with suppress(OSError):  # only now, with the file there: whoever waits for the lock needs nothing from it
                lock.unlink()
    except DownloadError:
        raise
    except NotImplementedError as error:
        raise job.error(f"{path.parent} is on a file system without locks") from error
    except OSError as error:  # the network's were handled below: this is the disk's
        raise job.error(f"cannot write {error.filename or path} ({error.strerror or error})") from error


class _Job(NamedTuple):
    url: str
    path: Path
    sha256: str | None
    size: int | None

    @property
    def part(self) -> Path:
        return Path(f"{self.path}.part")

    @property
    def etag(self) -> Path:
        return Path(f"{self.path}.part.etag")

    def kept(self) -> tuple[int, str]:
        """Length and ETag of the part to continue; ``(0, "")`` where there is none, or none known to be sound."""
        try:
            etag, have = self.etag.read_text("latin-1"), self.part.stat().st_size
        except FileNotFoundError:
            return 0, ""
        return (have, etag) if have and _ETAG.fullmatch(etag) else (0, "")

    def drop(self) -> None:
        """Delete the part."""
        self.part.unlink(missing_ok=True)
        self.etag.unlink(missing_ok=True)

    def error(self, text: str) -> DownloadError:
        """The error to raise: ``text``, then the cure, in one line whatever a server or a path put into it."""
        text = f"{text}: fetch {self.url} by other means and put it at {self.path}"
        return DownloadError("".join(c if c.isprintable() else " " for c in text))

    def no_room(self, needed: int, free: int) -> DownloadError:
        """The error of a full disk, with ``needed`` bytes still to come, as far as known."""
        megabytes = -(-max(needed, 1) // 10**6)
        return self.error(f"the disk is full: needs {megabytes:,} MB at {self.path.parent}, {free // 10**6:,} MB free")


def _download(job: _Job) -> None:
    """Fill the part, in several tries if need be, check it, and put it in place."""
    for wait in (*WAITS, None):
        try:
            _receive(job)
            break
        except _Cut as cut:
            if wait is None:
                raise job.error(f"{cut} ({len(WAITS) + 1} tries)") from cut
            time.sleep(wait)
    digest = _sync_and_hash(job.part)
    if job.sha256 is not None and digest != job.sha256.lower():
        job.drop()
        raise job.error(f"the file that came has sha256 {digest}, expected {job.sha256}")
    os.replace(job.part, job.path)
    job.drop()


def _sync_and_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        while block := file.read(BLOCK):  # what is on the disk, also from earlier calls
            digest.update(block)
    return digest.hexdigest()


def _receive(job: _Job) -> None:
    """Bring the part to its full length over one connection."""
    have, etag = job.kept()
    response = _open(job, have, etag)
    if response is None:
        return
    with response:
        theirs = response.headers.get("ETag", "")
        if response.status == 206:
            span = re.fullmatch(rf"bytes {_LENGTH}-\d+/{_LENGTH}", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != have or theirs not in ("", etag):
                job.drop()
                raise _Cut("the server sent another part than the one asked for")
            total: int | None = int(span[2])
        elif response.status == 200:  # the whole file: it is new to us, has changed, or ranges are not served
            have, total = 0, response.length
        else:
            raise job.error(f"the server answered {_status(response.status)}")
        if total is not None and job.size not in (None, total):  # before anything kept is overwritten
            raise job.error(f"the file there has {total:,} bytes, expected {job.size:,}")
        _store(job, response, have, theirs, job.size if total is None else total)


def _open(job: _Job, have: int, etag: str) -> http.client.HTTPResponse | None:
    """Ask for the file from byte ``have`` on; None if there is nothing beyond."""
    headers = {"User-Agent": "octaveconv"} | ({"Range": f"bytes={have}-", "If-Range": etag} if have else {})
    try:
        return urlopen(Request(job.url, headers=headers), timeout=TIMEOUT)  # type: ignore[no-any-return]
    except HTTPError as error:
        with error:
            _refused(job, have, etag, error)
        return None
    except URLError as error:
        why = f"the server cannot be reached ({_why(error.reason)})"
        raise (_Cut(why) if have else job.error(why)) from error  # without a network, say so at once
    except (http.client.InvalidURL, ValueError) as error:
        raise job.error(f"this is no address ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the server gave no answer ({_why(error)})") from error


def _refused(job: _Job, have: int, etag: str, error: HTTPError) -> None:
    """Return if the error says that the part is complete; raise `_Cut` where another try may help."""
    if error.code == 416 and have:
        length = re.fullmatch(rf"bytes \*/{_LENGTH}", error.headers.get("Content-Range", ""))
        same = error.headers.get("ETag", "") in ("", etag)
        if length and int(length[1]) == have and job.size in (None, have) and same:
            return
        job.drop()
        raise _Cut("the part kept from before is of another file")
    text = f"the server answered {_status(error.code)}"
    raise _Cut(text) if error.code in (408, 429) or error.code >= 500 else job.error(text)


def _store(job: _Job, response: http.client.HTTPResponse, have: int, etag: str, total: int | None) -> None:
    """Write what the response brings behind the first ``have`` bytes, up to ``total``, to the part."""
    limit = MAX_BYTES if total is None else total
    needed = (total or 0) - (job.part.stat().st_size if job.part.exists() else 0)
    free = shutil.disk_usage(job.path.parent).free
    if needed > free:
        raise job.no_room(needed, free)
    bar = tqdm(
        total=total, initial=have, desc=job.path.name, unit="B", unit_scale=True, leave=False,
        disable=None,  # unless standard error is a terminal
    )  # fmt: skip
    try:
        with bar, open(job.part, "ab" if have else "wb") as file:
            if not have:  # the part is empty now: at no time is one version's ETag beside another's bytes
                job.etag.write_text(etag, "latin-1")
            while block := _read(response, have, total):
                have += len(block)
                if have > limit:
                    break
                file.write(block)
                bar.update(len(block))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise job.no_room((total or 0) - have, shutil.disk_usage(job.path.parent).free) from error
    if have > limit:
        job.drop()
        raise job.error(f"more came than the {limit:,} bytes expected")


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
        return f"nothing came for {TIMEOUT:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
