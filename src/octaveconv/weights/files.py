"""Weights from a file of any kind, for one of our networks: what the file holds, whose names it uses, which alpha.

It reads the original's MXNet files (also as tar, gzip, xz), safetensors, and PyTorch checkpoints, the last with
``weights_only=True``: nothing in a file is ever executed. The content decides, not the name.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models import clean_state_dict
from torch import Tensor, nn

from .. import _atomic
from ..mxnet.container import HEAD, kind_of
from ..mxnet.params import load_mxnet
from . import keymaps

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
        mark: the alpha that it records, if it does.
        conversion: how the network was octavified, if it was (`Plan.conversion`).
        model: the name of their network, if it is recorded.
    """

    file: Path
    tensors: dict[str, Tensor]
    mark: float | None = None
    conversion: dict[str, Any] | None = None
    model: str | None = None

    @property
    def alpha(self) -> float | None:
        """The alpha of these weights: the recorded one, or that of the original's parts; otherwise unknown."""
        if self.mark is not None or not keymaps.is_foreign(self.tensors):
            return self.mark
        return keymaps.alpha_of(self.tensors)

    @property
    def num_classes(self) -> int | None:
        """The number of classes, if there is a classifier."""
        return next((len(self.tensors[name]) for name in _CLASSIFIERS if name in self.tensors), None)

    def state_dict(self, model: nn.Module, rebuilt: bool = False) -> dict[str, Tensor]:
        """These weights by the names of ``model``; only its shapes are used.

        Args:
            model: one of our networks, or one with the parameters of this file.
            rebuilt: the model was octavified as the file says.

        Raises:
            ValueError: they belong to another network, or to another alpha; the message lists what does not fit.
        """
        if self.conversion is not None and not rebuilt:
            raise _is_octavified(self.file, self.model or architecture(model))
        keymap = keymaps.keymap_for(self.tensors, model)
        if keymap is not None:
            try:
                return keymaps.to_state_dict(keymaps.fold_fixed_norms(self.tensors), model, keymap)
            except ValueError as error:
                raise ValueError(f"{self.file}: {error}") from error
        alpha = getattr(model, "alpha", 0)
        if self.mark not in (None, 0, alpha):
            raise ValueError(
                f"{self.file} has weights of alpha {self.mark}, the network has alpha {alpha}: create it at alpha "
                f"{self.mark}"
            )
        return self.tensors


def read(path: str | os.PathLike[str]) -> Weights:
    """Read a file of weights.

    Raises:
        ValueError: it is not such a file, or holds objects that only running code could restore; `MXNetFormatError`
            for a damaged MXNet file.
        OSError: there is no such file.
    """
    path = Path(path)
    check_file(path)
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if kind_of(head):
        return Weights(path, load_mxnet(path))
    if head[8:9] == b"{":
        return _read_safetensors(path)
    return _read_torch(path)


def check_file(path: Path) -> None:
    """Raise FileNotFoundError if there is nothing at ``path``, IsADirectoryError if a folder is there."""
    if path.is_dir():
        found = next((file for name in ("model.safetensors", "best.pth") if (file := path / name).is_file()), None)
        raise IsADirectoryError(f"{path} is a folder: name a file of weights" + (f", such as {found}" if found else ""))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")


def architecture(model: nn.Module) -> str:
    """The name of one of timm's networks; a network of the user's own may have none."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture", "..."))


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            mark = metadata.get("alpha")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            alpha = None if mark is None else float(mark)
            return Weights(path, tensors, alpha, _conversion(path, metadata), metadata.get("model"))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _conversion(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        found = json.loads(metadata.get("octavify", "null"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: its record of octavify is not JSON ({error})") from error
    return found if isinstance(found, dict) else None


def _read_torch(path: Path) -> Weights:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not an MXNet or safetensors file, and PyTorch cannot read it with weights_only=True: it is "
            f"damaged, or holds more than tensors (then save its state_dict alone)"
        ) from error
    recipe = state.get("recipe") if isinstance(state, Mapping) else None
    model = recipe.get("model") if isinstance(recipe, Mapping) else None  # of a run of octaveconv train
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):  # timm's order
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold a state dict")
    modules = getattr(state, "_metadata", {})
    root: dict[str, Any] = next(
        (modules[name] for name in ("", "module", "_orig_mod") if {"alpha", "octavify"} & modules.get(name, {}).keys()),
        {},
    )
    mark = next(iter(root.get("alpha", ())), None)
    return Weights(path, clean_state_dict(dict(state)), mark, _conversion(path, root), model)


def load(model: nn.Module, path: str | os.PathLike[str], strict: bool = True) -> Any:
    """Load a file of weights into one of our networks; returns what ``load_state_dict`` returns."""
    return model.load_state_dict(read(path).state_dict(model), strict=strict)


def refuse_octavified(path: str | os.PathLike[str], name: str = "...") -> None:
    """Raise ValueError if a file is marked as an octavified network's, whose tensors would fit the dense one as well.

    What else is in a file, and whether it can be read at all, is for timm to say.

    Args:
        path: a file of any kind.
        name: the dense network's name.
    """
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
        state = torch.load(path, map_location="meta", weights_only=True)
        states = [state, *(state.values() if isinstance(state, Mapping) else ())]
        modules = [module for found in states for module in getattr(found, "_metadata", {}).values()]
        return any("octavify" in module for module in modules)
    except Exception:  # a foreign or damaged file makes PyTorch raise anything
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
        The metadata written: model, alpha (of an octave network), source, sha256 (of the source).

    Raises:
        ValueError: the weights do not fit the network completely, or the digest differs.
        OSError: ``out`` cannot be written.
    """
    digest = _sha256(source)
    if sha256 not in (None, digest):
        raise ValueError(f"{source} has sha256 {digest}, expected {sha256}: delete it and download it again")
    state = read(source).state_dict(model)
    _check_complete(state, model, source)
    alpha = {"alpha": str(model.alpha)} if hasattr(model, "alpha") else {}
    metadata = {"model": name, **alpha, "source": origin or source.name, "sha256": digest}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return write(out, state, metadata)
    except OSError as error:
        raise OSError(f"cannot write {out}: {error.strerror or error}") from error


def write(out: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Write tensors as safetensors, complete or not at all; returns the metadata with the format's own."""
    metadata = {"format": "pt", **metadata}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with _atomic.replacing(out) as file:
        file.write(save(tensors, metadata))
    return metadata


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _check_complete(state: Mapping[str, Tensor], model: nn.Module, source: Path) -> None:
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    keymaps.check_leftovers(source, [k for k in state if k not in shapes], [k for k in shapes if k not in state])
    for key, tensor in state.items():
        if list(tensor.shape) != shapes[key]:
            raise ValueError(f"{source}: {key} has shape {list(tensor.shape)}, the network expects {shapes[key]}")
