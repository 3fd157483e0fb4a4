"""In-place operations become plain ones: from the graph alone where that is safe, by torch.export elsewhere."""

import logging

import pytest
import torch
import torch.nn.functional as F
from graphs import Net, kept_half
from torch import nn

from octaveconv.deploy.capture import Captures
from octaveconv.deploy.functionalize import functionalized


def itself_by_another_name(m, x):
    y = m.a(x)
    same = F.dropout(y, 0.5, training=False)  # returns its argument
    y.relu_()
    return same


SAFE = {
    "activations": lambda m, x: F.hardtanh_(m.b(F.relu_(m.norm(m.a(x))))),
    "a sum": lambda m, x: m.a(x).add_(m.a(x), alpha=2),
    "a residual": lambda m, x: F.relu_(m.a(x) + x),
    "one after another": lambda m, x: m.a(x).mul_(2).add_(1).relu_(),
    "a view that is all that is read": lambda m, x: m.a(x).flatten(1).relu_(),
    "its argument itself": itself_by_another_name,
    "read before": lambda m, x: (lambda y: (y.mean(), y.relu_())[1])(m.a(x)),
}


def changed_part(m, x):
    y = m.a(x)
    y[:, :2].relu_()
    return y


def one_of_several(m, x):
    y = m.a(x)
    first, second = y.chunk(2, 1)
    first.relu_()
    return y, second


UNSAFE = {
    "a view taken before": lambda m, x: kept_half(m.a(x)),
    "a part": changed_part,
    "a piece": one_of_several,
    "the input": lambda m, x: m.a(x.relu_()),
    "set by index": lambda m, x: (lambda y: (y.__setitem__((slice(None), 0), 0.0), y)[1])(m.a(x)),
    "another shape in place": lambda m, x: m.a(x).transpose_(2, 3),
}


def program(wires):
    model = Net(wires, a=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)).eval()
    model.norm.running_mean.uniform_(-1, 1)
    x = torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        return torch.export.export(model, (x,)), model(x.clone()), x


@pytest.mark.parametrize("name", [*SAFE, *UNSAFE])
def test_nothing_is_written_and_the_answer_is_the_same(name, monkeypatch):
    quick = name in SAFE
    exported, expected, x = program((SAFE | UNSAFE)[name])
    decomposed = []
    decompose = type(exported).run_decompositions
    monkeypatch.setattr(type(exported), "run_decompositions", lambda *a: decomposed.append(1) or decompose(*a))
    found = functionalized(exported)
    assert bool(decomposed) != quick
    operations = [node.target for node in found.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert not quick or not [operation for operation in operations if operation._schema.is_mutable]
    with torch.no_grad():
        torch.testing.assert_close(found.module()(x.clone()), expected)


def test_what_pytorch_logs_of_inequalities_is_not_shown(monkeypatch, caplog):
    logger, export = logging.getLogger("torch.fx.experimental.symbolic_shapes"), torch.export.export
    level = logger.level

    def noisy(*args, **kwargs):
        logger.warning("Failed to reduce inequalities")
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", noisy)
    Captures(nn.Conv2d(3, 4, 1)).of(torch.Size((1, 3, 8, 8)))
    assert "inequalities" not in caplog.text
    assert logger.level == level
