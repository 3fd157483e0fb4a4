"""An octave network from the parts of one that torch.fx cannot trace as a whole.

Each module keeps its place, its attributes and its methods. Those that are parts get a ``forward`` that runs a graph.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from .._modes import copied, detached
from .allocate import allocate, least_share
from .budget import Budget
from .calls import run, values_like
from .conversion import Conversion, Options, record_of, registered_in
from .parts import Part, Parts
from .plan import LayerPlan, PartPlan, Plan
from .repair import RepairStep
from .rewrite import _STATE, OctavifiedGraph, OctavifiedModule
from .sample import Batch, Sample, cloned
from .shares import Alpha, choosers

Alphas = Callable[[fx.Node], float]


class Assembly:
    """The conversion of a network part by part.

    Args:
        model: the given network, which stays as it is.
        inputs: of it.
        kept: names of the modules that stay dense.
        options: the caller's.
        sample: images, if there are any.
        say: is told what is done.
        epochs: of distillation.
    """

    def __init__(
        self, model: nn.Module, inputs: tuple[Any, ...], kept: set[str], options: Options, sample: Sample | None,
        say: Callable[[str], object], epochs: int,
    ) -> None:  # fmt: skip
        self.model, self.inputs, self.options, self.sample = model, inputs, options, sample
        self.parts = Parts.of(copied(model), inputs, kept, options)
        self.notes: list[str] = []
        self.conversions = {
            part.name: Conversion(part.source, self._sample_of(part), say, epochs, part.traced)
            for part in self.parts.found
        }

    def run(self, alpha: Alpha, budget: Budget | None) -> tuple[OctavifiedModule, Plan]:
        """Make the octave network, and its plan.

        Raises:
            ValueError: the budget is out of reach, or is not one of multiply-adds.
        """
        for conversion in self.conversions.values():
            conversion.measure(required=budget is not None)
        chosen = self._chosen(alpha) if budget is None else self._allocated(budget)
        network, registered = self.parts.network, set[str]()
        layers: dict[str, list[LayerPlan]] = {}
        borders, steps, alphas = list[tuple[str, str]](), list[RepairStep](), dict[str, float]()
        for name, conversion in self.conversions.items():
            registered |= set(registered_in(conversion.net))
            made = conversion.rewritten(chosen[name])
            made.conversion = {}
            steps += [
                replace(step, name=f"{name}: {step.name}" if name else step.name) for step in conversion.mend(made)
            ]
            layers[name] = conversion.layers
            borders += [(kind, f"{conversion.source.prefix}{where}") for kind, where in conversion.rewriter.borders]
            alphas |= conversion.alphas
            _become_part(network.get_submodule(name), made, conversion)
        listed = self._listed(layers)
        octave = _become_network(network)
        octave.conversion = record_of(alphas, self.inputs, self.options, listed, sorted(registered))
        return octave, Plan(listed, borders, octave.conversion, self.notes, steps, self._plans())

    def _chosen(self, alpha: Alpha) -> dict[str, Alphas]:
        return dict(zip(self.conversions, choosers([each.net for each in self.conversions.values()], alpha)))

    def _allocated(self, budget: Budget) -> dict[str, Alphas]:
        """The same share of the multiply-adds for all parts, or what a part needs at least."""
        if budget.kind != "macs":
            raise ValueError(
                f"{budget.kind} is a budget of networks that torch.fx traces as a whole, and it cannot trace "
                f"{type(self.model).__name__}: give macs=0.8, for instance, or octavify one of {[*self.conversions]}"
            )
        total = sum(self.parts.recording.macs.values())
        dense = {
            name: sum(int(node.meta.get("macs") or 0) for node in each.net.steps)
            for name, each in self.conversions.items()
        }
        least = {name: least_share(each.net, each.saliencies) for name, each in self.conversions.items()}
        free, left = set(dense), budget.value * total - (total - sum(dense.values()))
        while True:
            share = left / max(sum(dense[name] for name in free), 1)
            bound = {name for name in free if least[name] > share}
            if not bound:
                break
            free -= bound
            left -= sum(least[name] * dense[name] for name in bound)
        if left < 0 or not free:
            raise ValueError(
                f"macs={budget.value:g} is out of reach: not enough of the network is in parts that can be octave"
            )
        return {
            name: allocate(each.net, each.saliencies, share if name in free else least[name])
            for name, each in self.conversions.items()
        }

    def _sample_of(self, part: Part) -> Sample | None:
        """What the part gets when the given network runs on the sample."""
        if self.sample is None:
            return None
        if part.source.others or not all(isinstance(x, torch.Tensor) for x in part.source.call.values):
            self.notes.append(f"{part.name} is called several times, or with lists: it got no sample")
            return None
        return Sample(*([self._batch(part, batch) for batch in batches] for batches in self.sample))

    def _batch(self, part: Part, batch: Batch) -> Batch:
        found: list[Batch] = []

        def note(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            source = part.source
            values = values_like(source.call.signature, source.call.forms, args, kwargs)
            if values is not None:
                found.append(tuple(cloned(values)))

        run(self.model, cloned(batch), {part.name: (note, None)})
        if len(found) != 1:
            raise ValueError(
                f"{part.name or 'the network'} is not called as with example_inputs: give calibrate like them"
            )
        return found[0]

    def _listed(self, layers: dict[str, list[LayerPlan]]) -> list[LayerPlan]:
        """The layers of all parts, and those that stay as they are, in the order of their calls."""
        parts, recording = self.parts, self.parts.recording
        found: list[LayerPlan] = []
        seen = set[str]()
        for name in recording.calls:
            module = self.model.get_submodule(name)
            left = {inner for part in parts.found for inner in part.left}
            found += [layer for layer in layers.get(name, ()) if layer.name not in left]
            owner = self._owner(name)
            if owner is not None or name in seen:
                continue
            seen.add(name)
            macs = recording.macs[name] // parts.images
            if macs or next(module.parameters(recurse=False), None) is not None:
                why = self._why(name)
                convolves = isinstance(module, _ConvNd)
                found.append(
                    LayerPlan(name or "forward", type(module).__name__, 0.0, 0.0, why, macs, macs, None, convolves)
                )
        return found

    def _owner(self, name: str) -> Part | None:
        """The part whose graph has what a module does."""
        for ancestor in _ancestors(name):
            for part in self.parts.found:
                if part.name == ancestor:
                    return part
            if ancestor in self.parts.reasons:
                return None
        return None

    def _why(self, name: str) -> str:
        ancestor = next((a for a in _ancestors(name) if a in self.parts.reasons), "")
        if self.parts.reasons.get(ancestor) == "listed in keep":
            return "listed in keep"
        verb = "keeps its forward" if ancestor == "" and self.parts.keeps_forward else "cannot be traced"
        return f"called by {ancestor or type(self.model).__name__}, which {verb}"

    def _plans(self) -> list[PartPlan]:
        found = {part.name: "" for part in self.parts.found} | self.parts.reasons
        order = {name: i for i, name in enumerate(self.parts.recording.calls)}
        plans = []
        for name in sorted(found, key=lambda name: order.get(name, 0)):
            calls = len(self.parts.recording.calls.get(name, ()))
            plans.append(PartPlan(name, type(self.model.get_submodule(name)).__name__, calls, found[name]))
        return plans


def _ancestors(name: str) -> list[str]:
    """A module's name, and those of the modules that it is in, from the inside out."""
    atoms = name.split(".") if name else []
    return [".".join(atoms[:i]) for i in range(len(atoms), 0, -1)] + [""]


class _Copied(nn.Module):
    """A module of a class that is made here, which no file can name."""

    __reduce__ = OctavifiedModule.__reduce__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for key, value in detached(self).items():
            memo.setdefault(key, value)
        vars(twin).update((name, copy.deepcopy(value, memo)) for name, value in vars(self).items())
        return twin


def _become_part(module: nn.Module, made: OctavifiedGraph, conversion: Conversion) -> None:
    """Let ``module`` do what ``made`` does, when it is called as its graph was traced."""
    for name in _STATE:
        vars(module)[name] = vars(made)[name]
    kind, call = type(module), conversion.source.call
    signature, forms, graph = call.signature, call.forms, type(made).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        values = values_like(signature, forms, args, kwargs)
        if values is not None:
            return graph(self, *values)
        try:
            return kind.forward(self, *args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"{kind.__name__} was octavified for calls like that of the example, and this is another one "
                f"({type(error).__name__}: {error}): octavify it with example_inputs like these"
            ) from error

    forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    module.__class__ = _class(kind, _Copied, forward=forward)


def _become_network(network: nn.Module) -> Any:
    """The network whose parts are octave, of a class of its own."""
    base = () if isinstance(network, _Copied) else (_Copied,)
    network.__class__ = _class(type(network), OctavifiedModule, *base)
    return network


def _class(kind: type, *bases: type, **members: Any) -> Any:
    name = kind.__name__ if kind.__name__.startswith("Oct") else f"Oct{kind.__name__}"
    return type(name, (*bases, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__, **members})
