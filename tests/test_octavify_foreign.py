"""octavify of random networks in the forms of other projects: what `foreign_promises` says. 2,000 of them by hand:
`make foreign`."""

import pytest
from foreign_promises import check

NETWORKS, QUICK = 60, 10


@pytest.mark.parametrize("seed", [pytest.param(i, marks=[pytest.mark.slow] * (i >= QUICK)) for i in range(NETWORKS)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_foreign_network(seed, tmp_path):
    check(seed, tmp_path / "octave.safetensors")
