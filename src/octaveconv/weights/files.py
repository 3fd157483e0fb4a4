"""Weights from a file of any kind, for one of our networks: what the file holds, whose names it uses, which alpha.

Read are the original's MXNet files (also as tar, gzip, xz), safetensors, and PyTorch checkpoints, the last with
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
    "fc.weight", "arg:classifier_weight", "classifer.weight", "classifier.weight", "head.fc.weight", "head.weight"
)  # fmt: skip


class Weights(NamedTuple):
    """What a file holds: tensors by the names in it, and its mark, an alpha or a conversion (`Plan.conversion`)."""

    file: Path
    tensors: dict[str, Tensor]
    mark: float | None = None
    conversion: dict[str, Any] | None = None

    @property
    def alpha(self) -> float | None:
        """The alpha of these weights: as marked, or as the original stored them in two parts; else unknown."""
        if self.mark is not None or not keymaps.is_foreign(self.tensors):
            return self.mark
        return keymaps.alpha_of(self.tensors)

    @property
    def num_classes(self) -> int | None:
        """Rows of the classifier, if there is one."""
        return next((len(self.tensors[name]) for name in _CLASSIFIERS if name in self.tensors), None)

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """These weights by the names of ``model``, one of our networks; only its shapes are used.

        Raises:
            ValueError: they are of another network, or of another alpha; the message lists what does not fit.
        """
        keymap = keymaps.keymap_for(self.tensors, model)
        if keymap is not None:
            try:
                return keymaps.to_state_dict(keymaps.fold_fixed_norms(self.tensors), model, keymap)
            except ValueError as error:
                raise ValueError(f"{self.file}: {error}") from error
        alpha = getattr(model, "alpha", 0)
        if self.mark not in (None, 0, alpha):
            raise ValueError(f"{self.file} is of alpha {self.mark}, the network of {alpha}: create it at that alpha")
        return self.tensors


def read(path: str | os.PathLike[str]) -> Weights:
    """Read a file of weights.

    Raises:
        ValueError: it is none, or holds objects that only executing code could restore; `MXNetFormatError` for a
            damaged MXNet file.
        OSError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if kind_of(head):
        return Weights(path, load_mxnet(path))
    if head[8:9] == b"{":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            mark = metadata.get("alpha")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            return Weights(path, tensors, None if mark is None else float(mark), _conversion(path, metadata))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _conversion(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        conversion = json.loads(metadata.get("octavify", "null"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: how it was octavified is not valid JSON ({error})") from error
    return conversion if isinstance(conversion, dict) else None


def _read_torch(path: Path) -> Weights:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is neither MXNet's nor safetensors, and PyTorch cannot read it with weights_only=True: it is "
            f"damaged, or holds more than tensors (then save its state_dict alone)"
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):  # timm's order
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict")
    modules = getattr(state, "_metadata", {})
    root: dict[str, Any] = next(
        (modules[name] for name in ("", "module", "_orig_mod") if {"alpha", "octavify"} & modules.get(name, {}).keys()),
        {},
    )
    mark = next(iter(root.get("alpha", ())), None)
    return Weights(path, clean_state_dict(dict(state)), mark, _conversion(path, root))


def load(model: nn.Module, path: str | os.PathLike[str], strict: bool = True) -> Any:
    """Load a file of weights into one of our networks; returns what ``load_state_dict`` returns."""
    return model.load_state_dict(read(path).state_dict(model), strict=strict)


def refuse_octavified(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if a safetensors file is marked as an octavified network's: in a dense one it would fit, too."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):  # another kind of file, or none: not ours to say
        return
    if "octavify" in metadata:
        name = metadata.get("model", "...")
        raise ValueError(
            f"{path} holds the weights of an octavified network: octaveconv.models.create({name!r}, "
            f"checkpoint=...) makes it again"
        )


def convert(
    source: Path, model: nn.Module, name: str, out: Path, *, origin: str | None = None, sha256: str | None = None
) -> dict[str, str]:
    """Write a file of weights as safetensors with our names. It appears complete or not at all.

    Args:
        source: a file that `read` reads.
        model: the network they are for; it may be on ``meta``.
        name: the network's name in timm.
        out: the file to write.
        origin: where the source comes from, for the metadata; its name by default.
        sha256: the digest that the source must have.

    Returns:
        The metadata written: model, alpha, source, sha256 (of the source).

    Raises:
        ValueError: the weights do not fit the network completely, or the digest is another.
        OSError: ``out`` cannot be written.
    """
    digest = _sha256(source)
    if sha256 not in (None, digest):
        raise ValueError(f"{source} has sha256 {digest}, expected {sha256}: delete it and fetch it again")
    state = read(source).state_dict(model)
    _check_complete(state, model, source)
    metadata = dict(model=name, alpha=str(model.alpha), source=origin or source.name, sha256=digest)
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
            raise ValueError(f"{source}: {key} is {list(tensor.shape)}, the network has {shapes[key]}")
