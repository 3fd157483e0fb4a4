"""Fetching a file from a server that does whatever servers do."""

import dataclasses
import errno
import hashlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from functools import partial
from urllib.request import Request

import pytest
from http_server import FileServer, Reply

from octaveconv.weights import _paced, download
from octaveconv.weights.download import DownloadError, fetch

BODY = random.Random(0).randbytes(1_000_000)
OTHER = random.Random(1).randbytes(900_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
CUT = 300_000


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0, 0, 0))
    monkeypatch.setattr(download, "TIMEOUT", 5)


@pytest.fixture
def server():
    with FileServer({"a.tar": BODY}) as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "a b.tar"


def names(path):
    """What lies in the folder, without the path's own name."""
    return sorted(file.name.removeprefix(path.name) for file in path.parent.iterdir())


def fails(server, path, name="a.tar", **known):
    """The one line said by a fetch that fails, without the cure, which is checked."""
    with pytest.raises(DownloadError) as caught:
        fetch(server.url(name), path, **known)
    assert not path.exists()
    text, _, cure = str(caught.value).rpartition(": download ")
    assert cure == f"{server.url(name)} by other means and save it as {path}"
    assert text.isprintable()
    return text


def interrupted(server, path):
    """Leave a part of ``CUT`` bytes."""
    server.usual = Reply(status=404)
    server.replies = [Reply(cut=CUT)]
    fails(server, path)
    assert path.with_name(f"{path.name}.part").read_bytes() == BODY[:CUT]
    assert names(path) == [".lock", ".part", ".part.etag"]
    server.usual = Reply()
    server.requests.clear()


def arrived(path, body=BODY):
    return path.read_bytes() == body and names(path) == [""]


@pytest.mark.parametrize("known", [{}, {"sha256": SHA256.upper()}, {"size": len(BODY)}], ids=str)
def test_a_file_arrives_and_nothing_else_is_left(server, path, known, capfd):
    fetch(server.url("a.tar"), path, **known)
    assert arrived(path)
    fetch(server.url("a.tar"), path, **known)
    assert server.ranges == [None]
    assert capfd.readouterr() == ("", "")


def test_what_is_there_is_left_alone(server, path, monkeypatch):
    monkeypatch.setattr(download, "FileLock", None)  # the folder may be read-only
    path.parent.mkdir()
    path.write_bytes(b"mine")
    fetch(server.url("a.tar"), path, sha256=SHA256)
    assert arrived(path, b"mine")
    assert server.requests == []


def test_it_is_on_the_disk_before_it_has_its_name(server, path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.append((os.fstat(file).st_size, path.exists()))))
    fetch(server.url("a.tar"), path)
    assert synced == [(len(BODY), False)]


def test_a_cut_connection_is_continued(server, path):
    server.replies = [Reply(cut=CUT), Reply(cut=CUT), Reply(status=500), Reply()]
    fetch(server.url("a.tar"), path, sha256=SHA256)
    assert arrived(path)
    assert server.ranges == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-", f"bytes={2 * CUT}-"]
    assert all(headers["If-Range"].strip('"') for headers in server.requests[1:])


def test_the_waits_between_tries(server, path, monkeypatch):
    waits = []
    monkeypatch.setattr(download, "WAITS", (1.0, 2.0))
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.usual = Reply(status=503)
    assert fails(server, path) == "the server answered 503 Service Unavailable (3 tries)"
    assert waits == [1, 2]
    assert names(path) == [".lock"]


def test_the_next_call_continues(server, path):
    server.usual = Reply(cut=100_000)
    assert fails(server, path) == "the connection was cut after 400,000 of 1,000,000 bytes (4 tries)"
    server.usual = Reply()
    fetch(server.url("a.tar"), path, size=len(BODY))
    assert arrived(path)
    assert server.ranges[-1] == "bytes=400000-"


def test_a_server_without_ranges_starts_again(server, path):
    interrupted(server, path)
    server.replies = [Reply(ranges=False)]
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    assert server.ranges == [f"bytes={CUT}-"]


def test_without_a_strong_etag_it_starts_again(server, path):
    for etag in ("", 'W/"weak"', 'bad"'):
        server.requests.clear()
        server.replies = [Reply(cut=CUT, headers={"ETag": etag})]
        fetch(server.url("a.tar"), path)
        assert arrived(path)
        assert server.ranges == [None, None]
        path.unlink()


def test_a_part_of_unknown_origin_is_not_continued(server, path):
    interrupted(server, path)
    path.with_name(f"{path.name}.part.etag").unlink()
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    assert server.ranges == [None]


@pytest.mark.parametrize("if_range", [True, False], ids=["heeds If-Range", "ignores If-Range"])
@pytest.mark.parametrize("body", [OTHER, BODY[:100_000][::-1]], ids=["shorter", "shorter than the part"])
def test_a_file_that_changed_starts_again(server, path, body, if_range):
    interrupted(server, path)
    server.files["a.tar"] = body
    server.usual = Reply(if_range=if_range)
    fetch(server.url("a.tar"), path)
    assert arrived(path, body)


@pytest.mark.parametrize("span", ["", "bytes 5-999999/1000000", f"bytes {CUT}-999999/*"])
def test_a_wrong_range_starts_again(server, path, span):
    interrupted(server, path)
    server.replies = [Reply(headers={"Content-Range": span})]
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    assert server.ranges == [f"bytes={CUT}-", None]


def test_a_part_that_is_complete_is_checked_and_used(server, path):
    for body, known in [(BODY, {"sha256": SHA256}), (BODY + b"more", {})]:
        interrupted(server, path)
        path.with_name(f"{path.name}.part").write_bytes(body)
        fetch(server.url("a.tar"), path, **known)
        assert arrived(path)
        assert server.ranges == [f"bytes={len(body)}-", None][: 1 if known else 2]
        path.unlink()


def test_a_complete_part_of_another_version_or_size_is_not_used(server, path):
    interrupted(server, path)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(BODY)
    server.files["a.tar"] = BODY[::-1]
    server.usual = Reply(if_range=False)
    fetch(server.url("a.tar"), path)
    assert arrived(path, BODY[::-1])
    path.unlink()
    server.files["a.tar"] = BODY
    interrupted(server, path)
    part.write_bytes(BODY)
    assert fails(server, path, size=5) == "the server's file has 1,000,000 bytes, expected 5"


def test_wrong_bytes(server, path):
    server.files["a.tar"] = OTHER
    got = hashlib.sha256(OTHER).hexdigest()
    assert fails(server, path, sha256=SHA256) == f"the downloaded file has sha256 {got}, expected {SHA256}"
    assert names(path) == [".lock"]


def test_a_damaged_part_is_found_out(server, path):
    interrupted(server, path)
    path.with_name(f"{path.name}.part").write_bytes(bytes(CUT))
    assert "expected" in fails(server, path, sha256=SHA256)
    assert names(path) == [".lock"]
    fetch(server.url("a.tar"), path, sha256=SHA256)
    assert arrived(path)


def test_a_wrong_announced_size_costs_nothing(server, path):
    interrupted(server, path)
    server.files["a.tar"] = b"<html>log in first</html>"
    assert fails(server, path, size=len(BODY)) == "the server's file has 25 bytes, expected 1,000,000"
    server.files["a.tar"] = BODY
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    assert server.ranges == [f"bytes={CUT}-"] * 2


def test_less_than_announced(server, path):
    server.usual = Reply(headers={"Content-Length": "1000001"}, ranges=False)
    assert fails(server, path) == "the connection was cut after 1,000,000 of 1,000,001 bytes (4 tries)"
    assert ".part" in names(path)


NO_LENGTH = Reply(headers={"Content-Length": ""})


@pytest.mark.parametrize("reply", [NO_LENGTH, Reply(chunked=True)], ids=["no length", "chunked"])
def test_without_a_length(server, path, reply, monkeypatch):
    server.usual = reply
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    path.unlink()
    assert fails(server, path, size=999_999) == "the server sent more than the expected 999,999 bytes"
    monkeypatch.setattr(download, "MAX_BYTES", 999_998)
    assert fails(server, path) == "the server sent more than the expected 999,998 bytes"
    assert names(path) == [".lock"]
    server.usual = dataclasses.replace(reply, hang=CUT)  # said when it is known, not at the end
    assert fails(server, path, size=1000) == "the server sent more than the expected 1,000 bytes"


def test_without_a_length_the_size_given_tells_a_cut(server, path):
    server.replies = [dataclasses.replace(NO_LENGTH, cut=CUT)]
    fetch(server.url("a.tar"), path, size=len(BODY))
    assert arrived(path)
    path.unlink()
    server.usual = Reply(chunked=True, cut=CUT, ranges=False)
    assert fails(server, path).startswith("the connection was cut after 300,000 of ? bytes (IncompleteRead")


@pytest.mark.parametrize("span", [f"bytes {CUT}-499999/500000", f"bytes {CUT}-999998/1000000"])
def test_a_range_of_another_length_starts_again(server, path, span):
    interrupted(server, path)
    server.usual = Reply(headers={"Content-Range": span})
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    assert server.ranges == [f"bytes={CUT}-", None]


@pytest.mark.parametrize("etag", ["", '"another"'])
def test_a_range_of_an_unknown_version_starts_again(server, path, etag):
    """Also if nothing says that it is another one: two versions of the same length would be mixed."""
    interrupted(server, path)
    server.files["a.tar"] = BODY[::-1]
    server.usual = Reply(if_range=False, headers={"ETag": etag})
    fetch(server.url("a.tar"), path)
    assert arrived(path, BODY[::-1])
    assert server.ranges == [f"bytes={CUT}-", None]


def test_a_range_that_was_not_requested(server, path):
    server.usual = Reply(status=206, headers={"Content-Range": "bytes 0-999999/1000000"})
    assert fails(server, path).startswith("the server sent a different range than requested")


@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling"])
@pytest.mark.parametrize("suffix", [".part", ".part.etag"])
def test_nothing_is_written_through_a_link(server, path, kind, suffix):
    other = path.parent / "other"
    interrupted(server, path)
    mine = path.with_name(f"{path.name}{suffix}")
    content = mine.read_bytes()
    mine.unlink()
    if kind != "dangling":
        other.write_bytes(content)
    (mine.hardlink_to if kind == "hard" else mine.symlink_to)(other)
    fetch(server.url("a.tar"), path)
    assert server.ranges == [None]
    assert kind == "dangling" or other.read_bytes() == content
    assert other.exists() == (kind != "dangling")
    assert path.read_bytes() == BODY
    assert not path.is_symlink()


@pytest.mark.parametrize("coding", ["gzip", "br"])
def test_an_encoded_file_is_refused(server, path, coding):
    server.usual = Reply(headers={"Content-Encoding": coding})
    assert fails(server, path) == f"the server sent the file encoded ({coding}), which was not asked for"
    server.usual = Reply(headers={"Content-Encoding": "identity"})
    fetch(server.url("a.tar"), path)
    assert arrived(path)


@pytest.mark.parametrize("reply", [Reply(drip=1), Reply(drip=1, slow_head=True)], ids=["body", "headers"])
def test_a_byte_now_and_then_is_too_slow(server, path, reply, monkeypatch):
    """Here 5 kB/s over 0.2 s; no single silence is longer than the limit for silences."""
    monkeypatch.setattr(download, "WINDOW", 0.2)
    monkeypatch.setattr(download, "SLOWEST", 5000)
    monkeypatch.setattr(download, "WAITS", ())
    server.usual = reply
    assert "(less than 5 kB/s for 0.2 s) (1 tries)" in fails(server, path)


def test_a_download_has_an_end(server, path, monkeypatch):
    monkeypatch.setattr(download, "LONGEST", 0.2)
    server.usual = Reply(drip=1)
    text = fails(server, path)
    assert text.startswith("the connection was cut after ")
    assert "of 1,000,000 bytes (the time for this download is over); it took longer than" in text
    assert len(server.requests) == 1


@pytest.mark.parametrize("hang", [0, CUT])
def test_a_server_that_falls_silent(server, path, hang, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    begin = time.monotonic()
    server.replies = [Reply(hang=hang)]
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    path.unlink()
    server.usual = Reply(hang=0)
    text = "the connection was cut after 0 of 1,000,000 bytes (no data for 0.1 s) (4 tries)"
    assert fails(server, path) == text
    server.usual = Reply(gate=server._closing)
    assert fails(server, path) == "the server did not answer (no data for 0.1 s) (4 tries)"
    assert time.monotonic() - begin < 5  # of nine silences


def test_a_missing_file_is_asked_for_once(server, path):
    assert fails(server, path, "none.tar") == "the server answered 404 Not Found"
    assert len(server.requests) == 1
    server.usual = Reply(status=203)
    assert fails(server, path) == "the server answered 203 Non-Authoritative Information"
    assert len(server.requests) == 2
    assert names(path) == [".lock"]


def test_no_network(server, path, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", None)  # it is said at once
    monkeypatch.setattr(server, "url", lambda _: "http://127.0.0.1:1/a.tar")
    assert fails(server, path) == "the server cannot be reached (Connection refused)"

    def resolve(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert fails(server, path) == "the server cannot be reached (Name or service not known)"


def test_a_network_lost_on_the_way_is_tried_again(server, path, monkeypatch):
    interrupted(server, path)
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    with monkeypatch.context() as patch:
        patch.setattr(server, "url", lambda _: "http://127.0.0.1:1/a.tar")
        assert fails(server, path) == "the server cannot be reached (Connection refused) (4 tries)"
    assert len(waits) == 3
    fetch(server.url("a.tar"), path)
    assert arrived(path)


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://host/a", "/a", "http://[x", "http://h/a b", "http://ü/ä"]
)
def test_what_is_no_web_address(path, url):
    with pytest.raises(DownloadError) as caught:
        fetch(url, path)
    text, _, cure = str(caught.value).partition(": download ")
    assert cure == f"{url} by other means and save it as {path}"
    assert text.startswith("this is not a valid address" if url.startswith("http") else "only http and https addresses")


def test_a_disk_too_full_is_known_before(server, path, monkeypatch):
    usage = namedtuple("usage", "free")
    free = [usage(len(BODY) - 1)]
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: free[-1])
    assert fails(server, path) == f"the disk is full: needs 1 MB at {path.parent}, 0 MB free"
    assert names(path) == [".lock"]
    free.append(usage(len(BODY)))
    interrupted(server, path)
    free.append(usage(len(BODY) - CUT - 1))  # less than what is missing
    fails(server, path)
    free.append(usage(len(BODY) - CUT))
    fetch(server.url("a.tar"), path)
    assert arrived(path)


class FullDisk(io.FileIO):
    """Takes 500,000 bytes."""

    def write(self, data):
        if self.tell() + len(data) > 500_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_disk_that_fills_up_on_the_way(server, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download, "open", FullDisk, raising=False)
        text = fails(server, path)
    assert text.startswith(f"the disk is full: needs 1 MB at {path.parent}, ")
    assert names(path) == [".lock", ".part", ".part.etag"]
    kept = path.with_name(f"{path.name}.part").stat().st_size
    assert 0 < kept <= 500_000
    fetch(server.url("a.tar"), path, sha256=SHA256)
    assert arrived(path)
    assert server.ranges == [None, f"bytes={kept}-"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_disk_that_is_full_from_the_start(server, path, monkeypatch):
    real = open
    monkeypatch.setattr(download, "open", lambda name, mode: real("/dev/full" if mode == "xb" else name, "wb"), False)
    assert fails(server, path).startswith("the disk is full: needs 1 MB")


def test_a_folder_that_cannot_be_written(server, path):
    path.parent.write_text("a file")
    assert fails(server, path) == f"cannot write {path.parent} (File exists)"
    path.parent.unlink()
    path.with_name(f"{path.name}.part").mkdir(parents=True)
    assert fails(server, path) == f"cannot write {path}.part (Is a directory)"


def test_a_file_system_without_locks(server, path, monkeypatch):
    def refuse(_):
        raise NotImplementedError

    monkeypatch.setattr(download, "FileLock", refuse)
    assert fails(server, path) == f"{path.parent} is on a file system without locks"


def test_the_message_is_one_line_whatever_the_path(server, tmp_path):
    with pytest.raises(DownloadError) as caught:
        fetch(server.url("none"), tmp_path / "a\n\x1bb")
    assert str(caught.value).isprintable()


def test_ctrl_c_keeps_the_part(server, path, monkeypatch):
    read, blocks = download._read, []

    def stop(*args):
        if len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(read(*args))
        return blocks[-1]

    with monkeypatch.context() as patch:
        patch.setattr(download, "_read", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(server.url("a.tar"), path)
    assert names(path) == [".lock", ".part", ".part.etag"]
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    assert server.ranges == [None, f"bytes={sum(map(len, blocks))}-"]


def test_redirects(server, path):
    server.replies = [Reply(status=302, headers={"Location": server.url("a.tar")}, cut=0)]
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    server.replies = [Reply(status=302, headers={"Location": "file:///etc/hostname"}, cut=0)]
    path.unlink()
    assert fails(server, path) == "the server answered 302 Found and redirects to file:///etc/hostname"
    server.replies = [Reply(status=302, headers={"Location": "ftp://host/a"}, cut=0)]
    assert fails(server, path) == "the server redirects to ftp://host/a, which is not https or http as before"


def test_the_body_of_a_redirect_is_not_read(server, path):
    server.replies = [Reply(status=302, headers={"Location": server.url("a.tar")}, hang=CUT)]
    begin = time.monotonic()
    fetch(server.url("a.tar"), path)
    assert arrived(path)
    assert time.monotonic() - begin < 3  # the silence would last 5 s


def test_redirects_without_end(server, path):
    server.usual = Reply(status=302, headers={"Location": server.url("a.tar")}, cut=0)
    assert fails(server, path).startswith("the server answered 302 Found and redirects to http://127.0.0.1:")


def test_redirects_never_give_up_encryption():
    redirect = partial(_paced._Redirects().redirect_request, fp=None, code=302, msg="", headers={})
    for old, new, allowed in (("https", "http", False), ("https", "https", True), ("http", "https", True)):
        request = Request(f"{old}://a/b")
        if allowed:
            assert redirect(request, newurl=f"{new}://c/d").full_url == f"{new}://c/d"
        else:
            with pytest.raises(_paced.LeavesHTTP, match="http://c/d"):
                redirect(request, newurl=f"{new}://c/d")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar(server, path, monkeypatch):
    interrupted(server, path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    fetch(server.url("a.tar"), path)
    shown = sys.stderr.getvalue()
    assert "a b.tar" in shown
    assert "0.3/1.0 MB" in shown


def test_a_terminal_without_rich_shows_a_line(server, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    fetch(server.url("a.tar"), path)
    assert sys.stderr.getvalue() == "downloading a b.tar\n"


# Without octaveconv's own __init__, whose torch takes seconds to load.
ALONE = """
import pathlib, sys, types
for name, folder in ("octaveconv", "."), ("octaveconv.weights", "weights"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(pathlib.Path(sys.argv[1]) / folder)]
from octaveconv.weights.download import fetch
print("ready", flush=True)
fetch(sys.argv[2], pathlib.Path(sys.argv[3]))
"""


@pytest.fixture
def start(server, path):
    """Start a process that fetches; it is past its imports when this returns."""
    processes = []

    def start():
        package = os.path.dirname(os.path.dirname(download.__file__))
        argv = [sys.executable, "-c", ALONE, package, server.url("a.tar"), str(path)]
        processes.append(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        assert processes[-1].stdout.readline() == b"ready\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_fetches(server, path, start):
    gate = threading.Event()
    server.usual = Reply(gate=gate)
    processes = [start(), start()]
    wait_for(lambda: server.requests)
    time.sleep(0.3)  # the other could have asked by now
    gate.set()
    assert [process.wait(10) for process in processes] == [0, 0]
    assert len(server.requests) == 1
    assert arrived(path)
    assert [process.stderr.read() for process in processes] == [b"", b""]


def test_another_process_takes_over_from_one_that_was_killed(server, path, start):
    server.replies = [Reply(hang=CUT)]
    part = path.with_name(f"{path.name}.part")
    first = start()
    wait_for(lambda: part.exists() and part.stat().st_size >= CUT // 2)
    second = start()
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait(10) == 0
    assert arrived(path)
    assert int(server.ranges[1].strip("bytes=-")) >= CUT // 2
