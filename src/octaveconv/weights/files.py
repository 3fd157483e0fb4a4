"""Weights from a file of any kind, for one of our networks: what the file holds, whose names it uses, which alpha.

It reads the original's MXNet files (also as tar, gzip, xz), safetensors, and PyTorch checkpoints, the last with
``weights_only=True``: nothing in a file is ever executed. The content decides, not the name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .. import _atomic, _checksum, _yaml
from .._text import one_line
from ..about import About
from ..mxnet.container import HEAD, kind_of
from ..mxnet.params import load_mxnet
from . import checkpoints, keymaps, pickles

IN_RUNS = ("model.safetensors", "best.pth", "last.pth", "last.prev.pth")  # the weights in a run folder, best first
_CLASSIFIERS = (
    "fc.weight",
    "arg:classifier_weight",
    "classifer.weight",
    "classifier.weight",
    "head.fc.weight",
    "head.weight",
)


class Weights(NamedTuple):
    """What a file holds.

    Attributes:
        file: its path.
        tensors: by the names in it.
        about: what it says of itself.
    """

    file: Path
    tensors: dict[str, Tensor]
    about: About = About()

    @property
    def alpha(self) -> float | None:
        """The alpha of these weights: the recorded one, or that of the original's parts; otherwise unknown."""
        if self.about.alpha is not None or not keymaps.is_foreign(self.tensors):
            return self.about.alpha
        return keymaps.alpha_of(self.tensors)

    @property
    def num_classes(self) -> int | None:
        """The number of classes, if there is a classifier."""
        recorded = self.about.pretrained_cfg.get("num_classes")
        named = {checkpoints.unwrapped(name): tensor for name, tensor in self.tensors.items()}
        heads = (named[name] for name in _CLASSIFIERS if name in named)
        return next((len(head) for head in heads if head.ndim), recorded)

    def state_dict(self, model: nn.Module, rebuilt: bool = False) -> dict[str, Tensor]:
        """These weights by the names of ``model``; only its shapes are used.

        Args:
            model: one of our networks, or one with the parameters of this file.
            rebuilt: the model was octavified as the file says.

        Raises:
            ValueError: they belong to another network, or to another alpha; the message lists what does not fit.
        """
        own = json.loads(json.dumps(getattr(model, "conversion", None)))  # as plain as what is recorded
        if self.about.octavify is not None and not rebuilt and self.about.octavify != own:
            raise _is_octavified(self.file, self.about.model or architecture(model))
        try:
            tensors = checkpoints.plain(self.tensors, model.state_dict())
            keymap = keymaps.keymap_for(tensors, model)
            if keymap is not None:
                return keymaps.to_state_dict(keymaps.fold_fixed_norms(tensors), model, keymap)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error
        alpha = getattr(model, "alpha", 0)
        mark = self.about.alpha
        if mark not in (None, 0, alpha):
            raise ValueError(
                f"{self.file} has weights of alpha {mark}, the network has alpha {alpha}: create it at alpha {mark}"
            )
        return tensors


def read(path: str | os.PathLike[str], averaged: bool = True) -> Weights:
    """Read a file of weights, or those of a run folder: the final ones, or else those of its best checkpoint.

    Args:
        path: the file or folder.
        averaged: of a checkpoint, take the averaged weights if it has some.

    Raises:
        ValueError: it is not such a file, is damaged, or holds objects that only running code could restore;
            `MXNetFormatError` for a damaged MXNet file.
        OSError: there is no such file.
    """
    given = Path(path)
    path = find(given)
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if kind_of(head):
        return Weights(path, load_mxnet(path))
    check_sum(path)
    found = _read_safetensors(path) if head[8:9] == b"{" else of_state(path, _load(path), averaged)
    recipe = given / "config.yaml"
    if found.about.model_args or not (given.is_dir() and recipe.is_file()):
        return found
    return found._replace(about=_completed(found.about, recipe))  # of a run of an earlier version


def find(path: str | os.PathLike[str]) -> Path:
    """The file of weights that is meant: the one at ``path``, or if that is a run folder, the one to use in it.

    Raises:
        FileNotFoundError, IsADirectoryError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in IN_RUNS if (path / name).is_file()), None)
        if found is None:
            raise IsADirectoryError(f"{path} is a folder without {', '.join(IN_RUNS[:2])}: name a file of weights")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path


def check_sum(path: Path) -> None:
    """Raise ValueError if a file is damaged, as far as its checksums tell; the message names what is beside it."""
    if problem := _checksum.problem(path):
        others = [name for name in IN_RUNS if name != path.name and (path.parent / name).is_file()]
        cure = (
            f"use another file of the run: {', '.join(others)}"
            if path.name in IN_RUNS and others
            else "copy it or write it again"
        )
        raise ValueError(f"{path} is damaged: {problem}: {cure}")


def architecture(model: nn.Module) -> str:
    """The name of one of timm's networks; a network of the user's own may have none."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture", "..."))


def _completed(about: About, recipe: Path) -> About:
    """What a file says, and where it says nothing, the recipe of its run."""
    try:
        content = _yaml.read(recipe)
        told = About.of_recipe(content if isinstance(content, dict) else {})
    except (ValueError, OSError):
        return about
    return replace(told, **{key: value for key, value in vars(about).items() if value not in (None, {})})


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            about = About.read(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except Exception as error:  # a foreign or damaged file may make safetensors raise anything
        raise ValueError(f"{path} is damaged: {one_line(error) or type(error).__name__}") from error
    return _plain(path, tensors, about)


def _plain(path: Path, state: Mapping[str, Tensor], about: About) -> Weights:
    try:
        return Weights(path, checkpoints.plain(state), about)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load(path: Path) -> Any:
    try:
        return pickles.read(path, skip=True)
    except ValueError as error:
        raise ValueError(
            f"{path} is not an MXNet or safetensors file, and PyTorch cannot read it with weights_only=True ({error}): "
            f"it is damaged, or holds more than tensors (then save its state_dict alone)"
        ) from error


def of_state(path: Path, state: Any, averaged: bool = True) -> Weights:
    """The weights in what PyTorch has read from a file: a state dict, or a checkpoint that holds one.

    Args:
        path: the file, for messages.
        state: what it holds.
        averaged: take averaged weights if there are some.

    Raises:
        ValueError: there is none in it, or what it says of itself is not what it should be.
    """
    about, outer = About(), state
    state = checkpoints.state_dict_in(outer, averaged)
    if state is None:
        if kind := checkpoints.whole_network(outer):
            raise ValueError(
                f"{path} holds a whole {kind}, which only running its code could restore: where it was written, load "
                f"it (torch.load with weights_only=False, if you trust it) and save its state_dict() instead"
            )
        raise ValueError(f"{path} does not hold a state dict")
    if wrong := [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]:
        raise ValueError(
            f"{path} does not hold a state dict alone: its entry {str(wrong[0])[:60]!r} is not a named tensor"
        )
    try:
        root = checkpoints.root_metadata(state)
        if isinstance(outer.get("about"), Mapping):
            about = About.read(outer["about"])
        elif isinstance(outer.get("recipe"), Mapping):
            with suppress(ValueError):  # of another program
                about = About.of_recipe(outer["recipe"])
        marks = About.read({"alpha": next(iter(root.get("alpha", ())), None), "octavify": root.get("octavify")})
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error
    about = replace(
        about, **{key: value for key in ("alpha", "octavify") if (value := getattr(marks, key)) is not None}
    )
    found, names = _plain(path, state, about), checkpoints.class_names(outer)
    if names is None or about.label_names or found.num_classes != len(names):
        return found
    classes = {"label_names": names, "num_classes": len(names)}
    return found._replace(about=replace(about, pretrained_cfg=about.pretrained_cfg | classes))


def load(model: nn.Module, path: str | os.PathLike[str], strict: bool = True, averaged: bool = True) -> Any:
    """Load a file of weights into one of our networks; returns what ``load_state_dict`` returns."""
    return model.load_state_dict(read(path, averaged).state_dict(model), strict=strict)


def refuse(path: str | os.PathLike[str], name: str = "...") -> None:
    """Raise ValueError if a file is damaged, or an octavified network's, whose tensors would fit the dense one as well.

    What else is in a file, and whether it can be read at all, is for timm to say.

    Args:
        path: a file of any kind.
        name: the dense network's name.
    """
    if Path(path).is_file():
        check_sum(Path(path))
    try:
        with safe_open(path, "pt") as file:
            marked = "octavify" in (file.metadata() or {})
    except (SafetensorError, OSError):
        marked = _is_marked_checkpoint(path)
    if marked:
        raise _is_octavified(path, name)


def _is_marked_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a PyTorch checkpoint, or a state dict in it, is marked as an octavified network's."""
    try:
        state = pickles.read(path, "meta", skip=True)
        states = [state, *(state.values() if isinstance(state, Mapping) else ())]
        modules = [module for found in states for module in getattr(found, "_metadata", {}).values()]
        return any("octavify" in module for module in modules)
    except (ValueError, OSError, AttributeError, TypeError):  # it is not a state dict
        return False


def _is_octavified(path: str | os.PathLike[str], name: str = "...") -> ValueError:
    return ValueError(
        f"{path} holds the weights of an octavified network: octaveconv.models.create({name!r}, "
        f"checkpoint={str(path)!r}) rebuilds it from the dense network"
    )


def convert(
    source: Path, model: nn.Module, name: str, out: Path, *, origin: str | None = None, sha256: str | None = None
) -> dict[str, str]:
    """Write a file of weights as safetensors under our names. It appears complete or not at all.

    Args:
        source: a file that `read` reads.
        model: the network they are for; it may be on ``meta``.
        name: the network's name in timm.
        out: the file to write.
        origin: where the source comes from, for the metadata; its name by default.
        sha256: the digest that the source must have.

    Returns:
        The metadata written: what `About.metadata` gives, source, and sha256 (of the source).

    Raises:
        ValueError: the weights do not fit the network completely, or the digest differs.
        OSError: ``out`` cannot be written.
    """
    digest = _sha256(source)
    if sha256 not in (None, digest):
        raise ValueError(f"{source} has sha256 {digest}, expected {sha256}: delete it and download it again")
    state = read(source).state_dict(model)
    check_complete(state, model, source)
    metadata = About.of(model, name).metadata() | {"source": origin or source.name, "sha256": digest}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return write(out, state, metadata)
    except OSError as error:
        raise OSError(f"cannot write {out}: {error.strerror or error}") from error


def write(out: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Write tensors as safetensors with a checksum, complete or not at all; returns the metadata without it."""
    metadata = {"format": "pt", **metadata}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    data = save(tensors, metadata | {"checksum": _checksum.EMPTY})
    with _atomic.replacing(out) as file:
        for piece in _checksum.sealed(data):
            file.write(piece)
    return metadata


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_complete(state: Mapping[str, Tensor], model: nn.Module, source: Path) -> None:
    """Raise ValueError unless a state dict fills a network, which may be on ``meta``, completely and exactly."""
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    keymaps.check_leftovers(source, [k for k in state if k not in shapes], [k for k in shapes if k not in state])
    for key, tensor in state.items():
        if list(tensor.shape) != shapes[key]:
            raise ValueError(f"{source}: {key} has shape {list(tensor.shape)}, the network expects {shapes[key]}")
