"""``python -m octaveconv`` is the command line, also for torchrun: ``torchrun -m octaveconv eval ...``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
