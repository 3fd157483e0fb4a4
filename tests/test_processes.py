"""Several processes: they find each other, also where torchrun has started them anew."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from octaveconv import processes


@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_start_agrees_on_another_name(size):
    store, names = dist.HashStore(), set()
    for start in range(4):
        for rank in range(start):  # these came, and died before the others did
            store.set(f"hello {rank}", f"dead {start}")
        with ThreadPoolExecutor(size) as pool:
            found = set(pool.map(lambda rank: processes.agreed_name(store, rank, size, 30), range(size)))
        assert len(found) == 1
        names |= found
    assert len(names) == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_do_not_come(rank):
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: processes.agreed_name(store, rank, 2, 30), range(2)))
    with pytest.raises(RuntimeError, match=r"the 2 processes have not found each other within 0\.1 seconds"):
        processes.agreed_name(store, rank, 2, 0.1)  # what the former ones left there is not theirs
