"""Octave batch normalization after nn.SyncBatchNorm.convert_sync_batchnorm, on two processes."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import assert_close
from torch import nn

import octaveconv as oc

CASES = [(oc.OctBatchNorm2d, 1), (oc.OctBatchNorm2d, 2), (oc.OctBatchNorm1d, 1), (oc.OctBatchNorm3d, 1)]  # and cuts


def batch(axes, rows):
    generator = torch.Generator().manual_seed(0)
    high, low = (torch.randn(5, c, *[n] * axes, generator=generator) for c, n in ((6, 4), (2, 2)))
    return oc.Octave(high[rows].clone().requires_grad_(), low[rows].clone().requires_grad_())


def train_step(norm, rows):
    x = batch(norm.axes, rows)
    y = norm(x)
    ((y.high**3).sum() + (y.low**3).sum()).backward()
    return [*y, x.high.grad, x.low.grad], norm


def net(octave_class, cut):
    torch.manual_seed(1)
    norm = octave_class(8, alpha=0.25, cut=cut)
    nn.init.normal_(norm.weight)
    return norm


def worker(rank, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for case in CASES:
        norm = nn.SyncBatchNorm.convert_sync_batchnorm(net(*case))
        assert "synchronized" in repr(norm)
        assert norm.state_dict().keys() == net(*case).state_dict().keys()
        outputs, norm = train_step(norm, [slice(0, 2), slice(2, 5)][rank])  # batches of different size
        for parameter in norm.parameters():
            dist.all_reduce(parameter.grad)
        results[rank, CASES.index(case)] = [
            t.detach() for t in (*outputs, norm.weight.grad, norm.bias.grad, *norm.buffers())
        ]
    dist.destroy_process_group()


def test_two_processes_equal_one_with_the_whole_batch():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.start_processes(worker, (port, results), nprocs=2, start_method="spawn")
        results = dict(results)
    for number, case in enumerate(CASES):
        outputs, norm = train_step(net(*case), slice(0, 5))
        for i, expected in enumerate(outputs):
            assert_close(torch.cat([results[0, number][i], results[1, number][i]]), expected, f"output {i}")
        shared = [norm.weight.grad, norm.bias.grad, *norm.buffers()]
        for rank in (0, 1):
            for actual, expected in zip(results[rank, number][4:], shared):
                if expected.is_floating_point():
                    assert_close(actual, expected)


def test_conversion_without_a_process_group_changes_nothing():
    norm, converted = net(*CASES[0]), nn.SyncBatchNorm.convert_sync_batchnorm(net(*CASES[0]))
    (expected, _), (actual, _) = train_step(norm, slice(0, 5)), train_step(converted, slice(0, 5))
    for one, other in zip(actual, expected):
        assert torch.equal(one, other)
