"""Tables in the documents are generated, from the registry and from results/.

``python tests/test_docs.py`` rewrites them. The examples in README, docs and docstrings are run by pytest's doctest
collection.
"""

import json
import re

import pytest
import timm
import torch
from doc_tables import ALPHAS, ROOT, TABLES

import octaveconv as oc
from octaveconv import models

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def costs():
    """What ``models/costs.json`` is to hold: parameters, and MACs at 224 pixels by alpha, of every network."""
    return {name: cost_of(name) for name in timm.list_models("oct_*") if not models.published(name)}


def cost_of(name, alphas=None):
    published = {record.alpha for record in models.PUBLISHED.values() if record.network == name}
    macs = {}
    for alpha in alphas or sorted({*ALPHAS, *published}):
        try:
            with torch.device("meta"):
                report = oc.cost(timm.create_model(name, alpha=alpha))
        except ValueError:  # ResNeXt's groups
            continue
        macs[f"{alpha:g}"] = report.macs
        assert report.macs == report.counted_macs
    return {"params": report.params, "macs": macs}


def with_tables(text):
    """The document with every marked table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        if begin in text:
            text = re.sub(
                f"{begin}.*?{end}", lambda _, b=begin, m=make, e=end: f"{b}\n{m()}\n{e}", text, flags=re.DOTALL
            )
    return text


def test_costs_are_of_every_network():
    assert list(models.COSTS) == [name for name in timm.list_models("oct_*") if not models.published(name)]


@pytest.mark.parametrize("name", models.COSTS)
def test_costs_are_up_to_date(name):
    known = models.COSTS[name]
    alpha = next((record.alpha for record in models.PUBLISHED.values() if record.network == name), 0.25)
    fresh = cost_of(name, [alpha])
    assert fresh["params"] == known["params"], "run: python tests/test_docs.py"
    assert fresh["macs"][f"{alpha:g}"] == known["macs"][f"{alpha:g}"], "run: python tests/test_docs.py"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_up_to_date(path):
    text = path.read_text()
    assert text == with_tables(text), "run: python tests/test_docs.py"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_block_is_one_that_runs(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        assert block.startswith(">>> ")
        assert block.endswith("\n\n"), "doctest needs an empty line between the last output and the closing fence"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_readme_shows_the_two_commands():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in (ROOT / "README.md").read_text()
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name)
def test_results_state_their_conditions(path):
    result = json.loads(path.read_text())
    assert {"torch", "python", "cpu", "gpu"} <= result["env"].keys()
    assert "threads" in json.dumps(result)


if __name__ == "__main__":
    models.COSTS |= costs()
    (ROOT / "src/octaveconv/models/costs.json").write_text(json.dumps(models.COSTS, indent=1) + "\n")
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text()))
