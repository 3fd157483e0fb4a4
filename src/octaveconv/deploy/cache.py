"""The folder for what was built or measured for this machine."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``OCTAVECONV_CACHE``, or ``~/.cache/octaveconv``. It may not exist yet."""
    return Path(os.environ.get("OCTAVECONV_CACHE") or Path.home() / ".cache" / "octaveconv")
