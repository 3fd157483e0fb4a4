"""Foreign text where it is shown: names and messages that would command the terminal, or pass for lines of ours."""

import io
import json
import shutil
import sys

import pytest
from folders import encoded, make_folder
from helpers import run
from http_server import FileServer

from octaveconv import _progress, cli
from octaveconv._text import say, shown, text_table
from octaveconv.weights.download import DownloadError, fetch

HOSTILE = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\n",
    "\r",
    "\t",
    "\x00",
    "\x7f",
    "\x9b31m",
    "\u202e",
    "\u2066",
    "\u2028",
    "\ud83d",
]
FINE = "caf\u00e9 \u732b \U0001f600 [bold] \\ ' \" {x}"


def is_clean(text):
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("mark", HOSTILE, ids=ascii)
def test_what_does_not_print_is_escaped(mark):
    text = shown(f"a{mark}b")
    assert text.isprintable()
    assert text == f"a{repr(mark)[1:-1]}b"
    table = text_table([["name", "n"], [f"a{mark}b", "1"]])
    assert table.split("\n") == [f"name{' ' * (len(text) - 4)}  n", f"{text}  1"]


def test_what_prints_is_left_alone(capsys):
    assert shown(FINE) == FINE
    say(FINE, "two")
    say("three", error=True)
    assert capsys.readouterr() == (f"{FINE}\ntwo\n", "three\n")


@pytest.mark.parametrize("mark", [mark for mark in HOSTILE if mark not in "\x00\ud83d"], ids=ascii)
def test_names_of_classes_and_files(tmp_path, capsys, mark):
    make_folder(tmp_path / "set", (2, 2))
    hostile = tmp_path / "set" / f"x{mark}octaveconv: all is well"
    hostile.mkdir()
    (hostile / f"{mark}.png").write_bytes(b"no image")
    (hostile / f"{mark}.txt").write_bytes(b"")
    (hostile / "0.png").write_bytes(encoded(0))
    command = ["eval", "oct_mobilenetv1_075", "--size=32", "--device=cpu", "--workers=0", f"--data={tmp_path / 'set'}"]
    for more in ([], ["--skip-corrupt"]):
        code, out, error = run(capsys, *command, *more)
        assert code == (not more)
        assert is_clean(out)
        assert is_clean(error)
        name = shown(f"x{mark}octaveconv: all is well/{mark}.png")
        assert name in (out if more else error)
        assert not any(line.startswith("octaveconv: all is well") for line in [*out.split("\n"), *error.split("\n")])
        assert len(error.splitlines()) == (not more)


@pytest.mark.parametrize("mark", ["\x1b[2J", "\u202e", "\n"], ids=ascii)
def test_every_verb_shows_what_it_got_on_one_line(tmp_path, capsys, mark):
    file = tmp_path / f"a{mark}b.pth"
    file.write_bytes(b"no weights")
    report = tmp_path / f"a{mark}b.json"
    report.write_text(json.dumps({"model": f"a{mark}b"}))
    recipe = tmp_path / f"a{mark}b.yaml"
    recipe.write_text(json.dumps({f"fie{mark}ld": 1}))
    for command in (
        ["eval", f"a{mark}b", "--data", "x"],
        ["eval", "oct_resnet50", "--data", f"a{mark}b"],
        ["eval", "oct_resnet50", "--checkpoint", file, "--data", tmp_path],
        ["convert", "oct_resnet50", file, "--out", tmp_path / "x.safetensors"],
        ["cost", f"a{mark}b"],
        ["report", report],
        ["train", "--recipe", recipe],
        ["train", "--resume", f"a{mark}b"],
        ["models", f"a{mark}b"],
        ["eval", "x", f"a{mark}b"],
        [f"a{mark}b"],
    ):
        code, out, error = run(capsys, *map(str, command))
        assert code, command
        assert is_clean(out), command
        assert error.rstrip("\n").isprintable(), (command, error)


def test_a_terminal_that_lacks_letters(tmp_path, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stderr", output)
    assert cli.main(["eval", "oct_resnet50", "--data", f"{tmp_path}/caf\u00e9"]) == 2
    output.flush()
    assert rb"caf\xe9" in output.buffer.getvalue()


def test_what_a_server_says(tmp_path):
    with FileServer({}) as server, pytest.raises(DownloadError) as caught:
        fetch(server.url("a\u202e%1b"), tmp_path / "a\x1b[2J\nb")
    assert str(caught.value).isprintable()
    assert r"a\x1b[2J\nb" in str(caught.value)


def test_the_progress_bar(monkeypatch):
    """Of a name that is markup for rich, and one that would command the terminal."""
    rich = pytest.importorskip("rich.console")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert shutil.get_terminal_size().columns
    assert rich.Console(stderr=True).is_terminal
    with _progress.live(stderr=True) as bars:
        bars.add_task("[/red]name[bold]", total=2, figures="[/x]")
        bars.refresh()
    assert "[/red]name[bold]" in terminal.getvalue()
