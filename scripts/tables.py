"""What the modules that make the documents' tables share."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def markdown(rows):
    """Rows of cells as a Markdown table, the first row as its heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]])
