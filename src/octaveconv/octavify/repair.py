"""What is done with a sample once the octave network stands: each step is kept only if the answers come closer."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode
from ..nn.norm import OctBatchNormNd
from .distill import distill
from .refit import refit
from .rewrite import OctavifiedGraph
from .sample import Batch, Judge, Sample, cloned
from .spaces import Net

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, OctBatchNormNd)
State = dict[str, Tensor]


@dataclass(frozen=True)
class RepairStep:
    """One step, and what it brought.

    Attributes:
        name: ``as given``, ``ordered``, ``refitted``, ``norms`` or ``distilled``.
        divergence: how far the answers are from the dense network's on images that were kept to judge with: of scores
            of classes the mean Kullback-Leibler divergence in nats, of other answers the relative squared error.
        agreement: share of those images with the same first class; of other answers, 1 less the divergence.
        seconds: how long the step took.
        kept: whether the network comes from this step.
    """

    name: str
    divergence: float
    agreement: float
    seconds: float
    kept: bool = False

    def __str__(self) -> str:
        closeness = f"agreement {self.agreement:.1%}, divergence {self.divergence:.4f}"
        return f"{self.name}: {closeness}, {self.seconds:.1f} s"


def repair(
    net: Net,
    dense: nn.Module,
    octave: OctavifiedGraph,
    values: Mapping[fx.Node, Any],
    given: Mapping[str, Any],
    sample: Sample,
    say: Callable[[str], object],
    seconds: float,
    epochs: int,
) -> list[RepairStep]:
    """Bring an octave network's answers closer to the dense network's.

    Args:
        net, dense, octave, values: as of `refit`.
        given: the dense weights as the caller gave them, with the channels in that order.
        sample: images to fit with, and others to judge each step with.
        say: is told of each step.
        seconds: how long it took to find the order of the channels.
        epochs: of distillation.
    """
    made = _Repair(octave, Judge(fx.GraphModule(dense, net.graph), sample), say)
    ordered = _copy(octave.state_dict())
    made.step("as given", lambda: made.take(given))
    made.step("ordered", lambda: made.take(ordered), seconds)
    made.step("refitted", lambda: refit(net, dense, octave, values, sample.fit))
    made.take_best()
    if any(isinstance(part, _NORMS) for part in octave.modules()):
        made.step("norms", lambda: reestimate_norms(octave, sample.fit))
        made.take_best()
    if epochs:
        try:
            made.step("distilled", lambda: distill(net, dense, octave, values, sample.fit, epochs, say))
        except (RuntimeError, NotImplementedError) as error:  # whatever has no derivative
            warnings.warn(f"it could not be distilled: {str(error).partition(chr(10))[0]}", stacklevel=2)
        made.take_best()
    return made.steps


class _Repair:
    """An octave network's weights, of which the best are kept.

    Args:
        octave: the network.
        judge: compares it with the dense one.
        say: is told of each step.
    """

    def __init__(self, octave: OctavifiedGraph, judge: Judge, say: Callable[[str], object]) -> None:
        self.octave, self.judge, self.say = octave, judge, say
        self.steps: list[RepairStep] = []
        self._least, self._best = math.inf, State()

    def step(self, name: str, change: Callable[[], object], seconds: float = 0.0) -> None:
        """Change the network, and keep the change if its answers are closer to the dense ones than ever before."""
        begin = time.perf_counter()
        change()
        closeness = self.judge(self.octave)
        spent = seconds + time.perf_counter() - begin
        better = closeness.divergence < self._least
        if better:
            self._least, self._best = closeness.divergence, _copy(self.octave.state_dict())
            self.steps = [replace(step, kept=False) for step in self.steps]
        self.steps.append(RepairStep(name, *closeness, round(spent, 2), better))
        self.say(str(self.steps[-1]))

    def take_best(self) -> None:
        """Give the network the best weights."""
        self.take(self._best)

    def take(self, state: Mapping[str, Any]) -> None:
        """Give the network these weights."""
        with torch.no_grad():
            for name, value in self.octave.state_dict().items():
                if isinstance(value, Tensor):  # not a layer's extra state
                    value.copy_(state[name])


def _copy(state: Mapping[str, Any]) -> State:
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}


def reestimate_norms(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Replace the running statistics of all batch norms that run with those of the sample.

    They stay as they are if a norm gets a single number of a channel, which has no variance.
    """
    norms: list[Any] = [part for part in model.modules() if isinstance(part, _NORMS) and part.running_mean is not None]
    momenta = {norm: norm.momentum for norm in norms}
    before = {norm: _copy(norm.state_dict()) for norm in norms}
    try:
        with eval_mode(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True  # the plain average over the batches
            for batch in batches:
                model(*cloned(batch))
        left = [norm for norm in norms if not norm.num_batches_tracked]
    except ValueError:
        left = norms
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    for norm in left:
        norm.load_state_dict(before[norm])
