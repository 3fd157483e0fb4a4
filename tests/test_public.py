"""Promises about the package as a whole."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from write_public_api import FILE, inventory

import octaveconv as oc

SOURCE = Path(oc.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# Imports point downwards: a room, a folder or a file of its own, imports from rooms named before it.
ROOMS = [
    "errors", "_leaf", "_text", "_yaml", "_atomic", "_checksum", "_csv", "_figure", "_page", "_modes", "_progress",
    "env", "about", "processes", "resolution", "channels", "arithmetic", "octave", "spec", "reference", "backends",
    "functional", "nn", "cost", "look", "octavify", "mxnet", "weights", "models", "data", "evaluate", "train", "deploy",
    "predict", "export", "bench", "quickstart", "doctor", "verbs", "cli", "__main__",
]  # fmt: skip


def test_the_public_interface_changes_on_purpose_only():
    assert inventory() == json.loads(FILE.read_text()), "if this is meant, run: python scripts/write_public_api.py"


def test_importing_needs_torch_alone_and_touches_no_gpu():
    code = """
import json, sys
import torch
before = set(sys.modules)
import octaveconv
print(json.dumps([sorted({name.split(".")[0] for name in set(sys.modules) - before}), torch.cuda.is_initialized()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new, cuda = json.loads(done.stdout)
    heavy = "timm torchvision triton matplotlib sklearn rich onnx onnxscript onnxruntime openvino"
    assert not {*heavy.split()} & set(new)
    assert not cuda
    assert done.stderr == ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    room, *rest = path.relative_to(SOURCE).with_suffix("").parts
    if room == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level <= len(rest):
            continue  # of another library, or of its own room
        names = [node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names]
        for name in names:
            assert ROOMS.index(name) < ROOMS.index(room), f"{path.name} imports {name}"


def test_every_room_has_its_place_and_its_line_in_the_contributors_guide():
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms - {"__init__"} == set(ROOMS)
    guide = (SOURCE.parent.parent / "CONTRIBUTING.md").read_text()
    for room in {path.relative_to(SOURCE).parts[0] for path in FILES} - {"__init__.py"}:
        assert f"`{room}`" in guide or f"`{room}/" in guide, room


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_is_one_idea_and_a_function_one_screen(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1:] or node.body  # the docstring is not counted
            assert node.end_lineno - first[0].lineno < 50, f"{path.name}: {node.name}"


@pytest.mark.parametrize("name", [name for name in oc.__all__ if name != "functional"])
def test_public_names_have_a_text_with_an_example(name):
    assert "Example:\n" in inspect.getdoc(getattr(oc, name))


def test_every_module_imports_and_has_a_text():
    for info in pkgutil.walk_packages([str(SOURCE)], "octaveconv."):
        assert importlib.import_module(info.name).__doc__, info.name
