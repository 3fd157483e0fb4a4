"""The largest parts of a network that torch.fx can trace, where it cannot trace the whole.

From the top down, each module is traced by itself with the arguments that it really gets. What cannot be traced inside
it stays as it is, and is searched in turn; where its own ``forward`` cannot be traced, its children are searched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from .._modes import eval_mode, restored
from .calls import Recording, alike, leaves
from .conversion import OTHERWISE, Options, Source, Traced
from .handlers import REGISTERED
from .maps import conv_axes
from .sample import cloned
from .splits import Splits
from .trace import Untraceable

_WORTH = 1.25  # how much more the network by itself must save, for its methods may not work then
_KEEPS = "keeps its forward: its parts save as much"
_TRIED = 0.5  # alpha at which two ways to divide a network are compared


class Part(NamedTuple):
    """A module that was traced by itself, and what stands in it as it is."""

    source: Source
    traced: Traced

    @property
    def name(self) -> str:
        """Of the module."""
        return self.source.name

    @property
    def left(self) -> dict[str, str]:
        """The modules that stand in it as they are, and why."""
        return {f"{self.source.prefix}{inner}": why for inner, why in self.traced.left.items()}

    @property
    def saved(self) -> int:
        """Multiply-accumulates that it can save, about."""
        splits = Splits(self.traced.net, lambda node: _TRIED)
        return sum(int(node.meta.get("macs") or 0) - splits.macs(node) for node in self.traced.net.steps)


@dataclass
class Parts:
    """The parts of a network.

    Attributes:
        network: a copy of the given one, which the parts share their parameters with.
        recording: one run of it.
        kept: names of the modules that the caller keeps.
        options: the caller's.
        found: the parts, in the order of their calls.
        reasons: of modules that are called, but are no parts, why not.
    """

    network: nn.Module
    recording: Recording
    kept: set[str]
    options: Options
    found: list[Part]
    reasons: dict[str, str]

    @classmethod
    def of(cls, network: nn.Module, inputs: tuple[Any, ...], kept: set[str], options: Options) -> Parts:
        """Find them. The network by itself is one of them only if smaller parts save less."""
        parts = cls(network, Recording(network, inputs), kept, options, [], {})
        whole = replace(parts, found=[], reasons={})
        parts._search_in("")
        whole._search("", children=False)
        saved = [sum(part.saved for part in each.found) for each in (whole, parts)]
        if saved[0] > _WORTH * saved[1] or not parts.found:
            parts = whole
        else:
            parts.reasons[""] = _KEEPS
        if whole.reasons.get(""):
            parts.reasons[""] = whole.reasons[""]
        order = {name: i for i, name in enumerate(parts.recording.calls)}
        parts.found.sort(key=lambda part: order[part.name])
        return parts

    @property
    def keeps_forward(self) -> bool:
        """Whether the network could be one part, but need not."""
        return self.reasons.get("") == _KEEPS

    @property
    def images(self) -> int:
        """Images in the example."""
        calls = self.recording.calls
        first = next((name for name in calls if isinstance(self.network.get_submodule(name), _ConvNd)), None)
        shapes = [x.shape for x in leaves(calls[first][0].values)] if first else []
        return shapes[0][0] if shapes else 1

    def _search_in(self, name: str) -> None:
        for child, _ in self.network.get_submodule(name).named_children():
            self._search(f"{name}.{child}" if name else child)

    def _search(self, name: str, children: bool = True) -> None:
        module = self.network.get_submodule(name)
        if not conv_axes(module) and not any(type(part) in REGISTERED for part in module.modules()):
            return
        if name in self.kept:
            self.reasons[name] = "listed in keep"
            return
        if name in self.recording.calls and next(module.children(), None) is not None:
            reason = self._refusal(name, module)
            try:
                if reason:
                    raise Untraceable(reason, reason)
                part = self._part(name, module)
            except Untraceable as error:
                self.reasons[name] = error.reason
            else:
                self.found.append(part)
                for left, why in part.left.items():
                    self.reasons[left] = why
                    self._search_in(left)
                return
        if children:
            self._search_in(name)

    def _refusal(self, name: str, module: nn.Module) -> str:
        """Why a module that is called cannot be a part, whatever it does."""
        if "forward" in vars(module):
            return "has a forward of its own instance"
        try:
            forms = [call.forms for call in self.recording.calls[name]]
        except ValueError as error:
            return str(error)
        if any(other != forms[0] for other in forms):
            return "is called with arguments of different kinds"
        prefix = f"{name}." if name else ""
        for inner, within in self.recording.within.items():
            own = inner.startswith(prefix) and inner != name and not _is_stateless(self.network.get_submodule(inner))
            if own and any(name not in names for names in within):
                return f"is not what calls {inner} alone"
        inside = {id(part) for part in module.modules() if not _is_stateless(part)}
        tensors = {id(x) for x in (*module.parameters(), *module.buffers())}
        for other, part in self.network.named_modules(remove_duplicate=False):
            if other == name or other.startswith(prefix):
                continue
            held = (*part.parameters(recurse=False), *part.buffers(recurse=False))
            if id(part) in inside - {id(module)} or (id(part) not in inside and any(id(x) in tensors for x in held)):
                return f"shares layers or weights with {other or 'the network'}"
        return ""

    def _part(self, name: str, module: nn.Module) -> Part:
        first, *rest = sorted(self.recording.calls[name], key=lambda call: -sum(x.numel() for x in leaves(call.values)))
        prefix = f"{name}." if name else ""
        source = Source(
            module,
            first,
            {kept.removeprefix(prefix) for kept in self.kept if kept.startswith(prefix)},
            self.options if self._reads_images(name) else self.options._replace(stem=True),
            {
                n.removeprefix(prefix): k
                for n, k in self.recording.lengths.items()
                if n.startswith(prefix) and n != name
            },
            lenient=True,
            others=[call.values for call in rest],
            images=self.images,
            name=name,
            memo={id(x): x for x in (*module.parameters(), *module.buffers())},
        )
        traced = source.traced()
        if traced.notes:
            reason = "does more in training mode than in evaluation"
            raise Untraceable(reason, reason)
        for call in self.recording.calls[name]:
            check_same(module, traced, call.args, call.kwargs, call.values)
        return Part(source, traced)

    def _reads_images(self, name: str) -> bool:
        """Whether no convolution has run before the first call of a module."""
        for other in self.recording.calls:
            if other == name:
                return True
            if isinstance(self.network.get_submodule(other), _ConvNd) and not name.startswith(f"{other}."):
                return False
        return True


def _is_stateless(module: nn.Module) -> bool:
    """Whether a module may be shared: an activation."""
    return not any((module._modules, module._parameters, module._buffers))


def check_same(module: nn.Module, traced: Traced, args: Any, kwargs: Any, values: Any) -> None:
    """Run a module, and the graph that was traced of it.

    Raises:
        Untraceable: they do not compute the same.
    """
    graph = fx.GraphModule(traced.net.model, traced.net.graph)
    try:
        with eval_mode(module), eval_mode(graph), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            args, kwargs = cloned((args, kwargs))
            with restored(module):
                expected = module(*args, **kwargs)
            torch.manual_seed(0)
            with restored(graph):
                found = graph(*cloned(values))
    except Exception as error:  # its code may raise anything
        reason = f"cannot be run by itself ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        raise Untraceable(reason, reason) from error
    if not alike(found, expected):
        raise Untraceable(OTHERWISE, OTHERWISE)
