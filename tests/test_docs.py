"""Tables in the documents are generated, from the registry and from results/.

``python tests/test_docs.py`` rewrites them. The examples in README, docs and docstrings are run by pytest's doctest
collection.
"""

import json
import re
from pathlib import Path

import pytest
import timm
import torch

import octaveconv as oc
import octaveconv.models
from octaveconv import quickstart

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ALPHAS = (0, 0.125, 0.25, 0.5, 0.75)


def markdown(rows):
    """Rows of cells as a Markdown table, the first row as its heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]])


def networks_table():
    rows = [["name", "parameters", *(f"MACs at {alpha:g}" for alpha in ALPHAS)]]
    for name in timm.list_models("oct_*"):
        cells = []
        for alpha in ALPHAS:
            try:
                with torch.device("meta"):
                    report = oc.cost(timm.create_model(name, alpha=alpha))
            except ValueError:  # ResNeXt's groups
                cells.append("-")
            else:
                cells.append(f"{report.macs / 1e9:.2f}")
        rows.append([f"`{name}`", f"{report.params / 1e6:.1f} M", *cells])
    return markdown(rows)


def quickstart_table():
    result = json.loads((ROOT / "results" / "quickstart.json").read_text())
    seeds = json.loads((ROOT / "results" / "quickstart_seeds.json").read_text())["accuracy"]
    spread = "; ".join(
        f"{name} {min(values):.1%} to {max(values):.1%}, mean {sum(values) / len(values):.1%}"
        for name, values in seeds.items()
    )
    note = (
        f"{quickstart.verdict(result)} Over {len(seeds['dense'])} seeds: {spread}.\n\n"
        f"Conditions: {quickstart.conditions(result)}."
    )
    return f"{markdown(quickstart.table(result))}\n\n{note}"


def parity_table():
    result = json.loads((ROOT / "results" / "parity.json").read_text())
    rows = [["golden", "network", "difference / std"]]
    rows += [
        [f"`{name}`", f"`{row['network']}`", f"{row['difference']:.1e}"] for name, row in result["goldens"].items()
    ]
    conditions = (
        f"Conditions: PyTorch {result['env']['torch']}, float32, {result['env']['cpu']}, {result['threads']} thread."
    )
    return f"{markdown(rows)}\n\n{conditions}"


TABLES = {"networks": networks_table, "quickstart": quickstart_table, "parity": parity_table}


def with_tables(text):
    """The document with every marked table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        if begin in text:
            text = re.sub(
                f"{begin}.*?{end}", lambda _, b=begin, m=make, e=end: f"{b}\n{m()}\n{e}", text, flags=re.DOTALL
            )
    return text


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
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text()))
