"""Promises about the tests themselves."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for room in ("tests", "experiments", "scripts") for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_shared_does_not_lie_in_a_test_file(path):
    """Not even in code that a test hands to another process."""
    found = re.findall(r"^\s*(?:from|import)\s+test_\w+", path.read_text(), re.MULTILINE)
    assert not found, f"{found}: move what is shared to conftest.py, helpers.py or another module beside them"
