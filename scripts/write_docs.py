"""Write the generated tables of the documents, and ``models/costs.json``: ``python scripts/write_docs.py``.

The tables come from the registry and from results/; `tests/test_docs.py` checks that they are up to date.
"""

import json
import re

import timm
import torch
from doc_tables import ALPHAS, ROOT, TABLES

import octaveconv as oc
from octaveconv import models

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def networks():
    """The networks whose costs are in ``models/costs.json``."""
    return [name for name in timm.list_models("oct_*") if not models.published(name)]


def cost_of(name, alphas=None):
    """Parameters, and MACs at 224 pixels by alpha."""
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
    """The document with every marked table written again."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        if begin in text:
            text = re.sub(
                f"{begin}.*?{end}", lambda _, b=begin, m=make, e=end: f"{b}\n{m()}\n{e}", text, flags=re.DOTALL
            )
    return text


def main():
    models.COSTS |= {name: cost_of(name) for name in networks()}
    (ROOT / "src/octaveconv/models/costs.json").write_text(json.dumps(models.COSTS, indent=1) + "\n")
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text()))


if __name__ == "__main__":
    main()
