"""The tables of the documents are what `scripts/write_docs.py` writes; their links lead somewhere.

The examples in README, docs and docstrings are run by pytest's doctest collection.
"""

import json
import re

import pytest
from doc_tables import ROOT
from write_docs import DOCUMENTS, cost_of, networks, with_tables

from octaveconv import models

CURE = "run: python scripts/write_docs.py"


def test_costs_are_of_every_network():
    assert list(models.COSTS) == networks(), CURE


QUICK = "oct_resnet(18|v2_26)$|seresnetv2_50|resnext50|mobilenetv._100|densenet121"  # of each class one


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (not re.search(QUICK, name)))
        for name in models.COSTS
        if re.search("18|26|50|121|mobilenet", name)
    ],
)
def test_costs_are_up_to_date(name):
    """The deeper ones have the same layers; `test_parity.py` counts them."""
    known = models.COSTS[name]
    alpha = next((record.alpha for record in models.PUBLISHED.values() if record.network == name), 0.25)
    fresh = cost_of(name, [alpha])
    assert fresh["params"] == known["params"], CURE
    assert fresh["macs"][f"{alpha:g}"] == known["macs"][f"{alpha:g}"], CURE


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_up_to_date(path):
    text = path.read_text()
    assert text == with_tables(text), CURE


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_block_is_one_that_runs(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        assert block.startswith(">>> ")
        assert block.endswith("\n\n"), "doctest needs an empty line between the last output and the closing fence"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_site_has_every_page():
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    listed = re.findall(r"```{toctree}.*?\n\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
    assert sorted(" ".join(listed).split()) == sorted(pages)


def test_readme_shows_the_two_commands():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in (ROOT / "README.md").read_text()
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_programs_that_the_documents_name_are_there(path):
    for program in re.findall(r"python ((?:scripts|experiments|examples|tests|bench)/\S+\.py)", path.read_text()):
        assert (ROOT / program).exists(), program


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name)
def test_results_state_their_conditions(path):
    result = json.loads(path.read_text())
    assert {"torch", "python", "cpu", "gpu"} <= result["env"].keys()
    assert "threads" in json.dumps(result)
