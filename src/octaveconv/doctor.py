"""Doctor: what is wrong with a run, a file of weights, a deployed network or a data set, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import _checksum
from ._text import counted, reason
from .data import loading
from .data.datasets import CorruptImage, Images, Stream, open_dataset
from .deploy.native import file as deployed
from .errors import MissingExtra, UsageError
from .models.create import check
from .train.folder import RunFolder
from .train.recipe import Recipe
from .weights import files as weights
from .weights import pickles

LISTED = 10  # names in one finding
_FAULTS = (UsageError, MissingExtra, ValueError, OSError, RuntimeError, AssertionError)


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        path: the file or folder.
        wrong: whether anything is.
        text: what it is, or what is wrong and what to do, in one line.
    """

    path: str
    wrong: bool
    text: str


def examine(path: Path, workers: int = 0) -> Iterator[Finding]:
    """Look at a run folder, a folder of runs, a file of weights or of a deployed network, or a data set.

    Args:
        path: it.
        workers: processes that read the images of a data set; 0 reads them in this one.

    Raises:
        FileNotFoundError: there is nothing.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_dir():
        runs = [path] if _is_run(path) else sorted(filter(_is_run, path.iterdir()))
        for run in runs:
            yield from _run(RunFolder(run))
        if not runs:
            yield from _data(path, workers)
    elif path.suffix == ".rec" or (path.suffix == ".tar" and _holds_images(path)):
        yield from _data(path, workers)
    else:
        yield _deployed(path) if _is_deployed(path) else _weights(path)


def _is_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("config.yaml", *weights.IN_RUNS))


def _holds_images(path: Path) -> bool:
    try:
        open_dataset(path)
    except (UsageError, OSError):
        return False
    return True


def _is_deployed(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return "deployed" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return path.suffix == ".octave"


def _deployed(path: Path) -> Finding:
    try:
        forms, dtype = deployed.loads(np.fromfile(path, np.uint8).data, path.name)
    except _FAULTS as error:
        return Finding(
            str(path), True, f"{_said(Path(path.name), error)}: copy it again, or deploy and save the network again"
        )
    name = forms.about.model or "a network"
    return Finding(str(path), False, f"{name}, deployed, {dtype}, for {' and '.join(map(str, forms))}")


def _weights(path: Path) -> Finding:
    """A file of weights: its checksum, its numbers, and whether it is the whole network that it records."""
    try:
        file = weights.read(path)
        if bad := [name for name, tensor in file.tensors.items() if not _is_finite(tensor)]:
            return Finding(str(path), True, f"not finite: {_listed(bad)}: use an earlier checkpoint")
        facts = [_what(file), f"{sum(tensor.numel() for tensor in file.tensors.values()):,} numbers"]
        if file.about.model:
            model = check(file.about.model, None, file)
            weights.check_complete(file.state_dict(model, rebuilt=True), model, path)
        else:
            facts.append(
                "it does not say which network it belongs to: octaveconv convert MODEL SRC writes one that does"
            )
        return Finding(str(path), False, "; ".join(facts))
    except _FAULTS as error:
        return Finding(str(path), True, _said(path, error))


def _said(path: Path, error: BaseException) -> str:
    """What an error says, without the path that it begins with."""
    return reason(error).removeprefix(str(path)).lstrip(": ")


def _what(file: weights.Weights) -> str:
    """What a file says of itself."""
    about = file.about
    shown = [about.model or "weights", "octavified" if about.octavify else ""]
    shown += ["" if file.alpha is None else f"alpha {file.alpha:g}"]
    shown += [f"{key} {value}" for key, value in about.model_args.items()]
    shown += [f"{file.num_classes} classes" if file.num_classes else "", f"{about.size} pixels" if about.size else ""]
    return ", ".join(filter(None, shown))


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


# A run


def _run(run: RunFolder) -> Iterator[Finding]:
    recipe = None
    try:
        recipe = Recipe.of(run.config())
        epochs = f", of {counted(recipe.epochs, 'epoch')}" if recipe.epochs else ""  # open only if written by hand
        yield Finding(str(run.path / "config.yaml"), False, f"the recipe{epochs}")
    except _FAULTS as error:
        cure = "last.pth has the recipe, too, with which octaveconv train --resume resumes"
        yield Finding(str(run.path / "config.yaml"), True, f"{_said(run.path / 'config.yaml', error)}: {cure}")
    states: dict[Path, Any] = {}
    for path in (run.last, run.previous, run.best):
        if path.exists() or path == run.last:
            finding, states[path] = _checkpoint(run, path)
            yield finding
    yield from _results(run, states[run.last])
    yield from _final(run, states[run.last], recipe)
    for path in sorted(run.path.glob("env*.json")):
        try:
            json.loads(path.read_text())
        except (ValueError, OSError, RecursionError) as error:
            yield Finding(str(path), True, f"it is not JSON ({reason(error)}): it only tells the versions")
    for path in sorted(run.path.glob("*.part")):
        yield Finding(str(path), False, "left by a crash, or being written now; the next save replaces it")


def _checkpoint(run: RunFolder, path: Path) -> tuple[Finding, Any]:
    others = [other.name for other in (run.last, run.previous, run.best) if other != path and other.exists()]
    cure = f"octaveconv train --resume {run.path} " + (
        f"starts from {others[0]} instead" if path == run.last and others else "writes it again"
    )
    try:
        problem = _checksum.problem(path)
        state: Any = None if problem else pickles.read(path)
    except FileNotFoundError:
        problem = "there is no such checkpoint"
    except (ValueError, OSError) as error:
        problem = reason(error)
    if problem:
        return Finding(str(path), True, f"it cannot be read ({problem}): {cure}"), None
    kinds = {"model": dict, "optimizer": dict, "epoch": int, "step": int, "recipe": dict, "streams": int}
    held = state if isinstance(state, dict) else {}
    missing = [key for key, kind in kinds.items() if not isinstance(held.get(key), kind)]
    if missing:
        return Finding(str(path), True, f"it has no {', '.join(missing)}: it cannot be resumed from"), None
    found = _weights(path)
    return found._replace(text=f"epoch {state['epoch']}, step {state['step']}; {found.text}"), state


def _results(run: RunFolder, state: Any) -> Iterator[Finding]:
    """The table: each epoch once, as many as the last checkpoint has trained; a kill may leave one row more."""
    path = str(run.results)
    try:
        epochs = [row.get("epoch") for row in run.rows()]
    except (ValueError, OSError) as error:
        yield Finding(path, True, f"it cannot be read ({reason(error)})")
        return
    if epochs != [str(number + 1) for number in range(len(epochs))]:
        shown = _listed([str(epoch) for epoch in epochs])
        yield Finding(path, True, f"its epochs are {shown}, not 1, 2, 3, ...: another program has changed it")
    elif state and not state["epoch"] <= len(epochs) <= state["epoch"] + 1:
        yield Finding(path, True, f"it has {counted(len(epochs), 'row')}, but last.pth is at epoch {state['epoch']}")
    elif epochs:
        yield Finding(path, False, counted(len(epochs), "epoch"))


def _final(run: RunFolder, state: Any, recipe: Recipe | None) -> Iterator[Finding]:
    path, resume = run.path / "model.safetensors", f"octaveconv train --resume {run.path}"
    finished = bool(state and recipe and recipe.epochs and state["epoch"] >= recipe.epochs)
    if path.exists():
        found = _weights(path)
        if not found.wrong and finished:
            theirs, ours = weights.of_state(run.last, state).tensors, weights.read(path).tensors
            if theirs.keys() != ours.keys() or not all(torch.equal(theirs[key], ours[key]) for key in ours):
                found = Finding(str(path), True, "it does not have the weights of last.pth")
        yield found._replace(text=f"{found.text}; {resume} writes it again") if found.wrong and finished else found
    elif finished:
        yield Finding(str(path), True, f"there are no final weights: {resume} writes them")
    elif state and recipe and recipe.epochs:
        yield Finding(str(run.path), False, f"not finished, {state['epoch']} of {recipe.epochs} epochs: {resume}")


# Data


def _data(path: Path, workers: int) -> Iterator[Finding]:
    names: dict[str, set[str]] = {}
    for split in ("train", None) if _has_train(path) else (None,):
        try:
            dataset = open_dataset(path, split)
        except _FAULTS as error:
            yield Finding(str(path), True, _said(path, error))
            continue
        if isinstance(dataset, Stream):
            yield Finding(str(path), False, "a stream, which is read only while it is used")
            continue
        counts, corrupt = _counts(dataset, workers)
        names[dataset.source] = {name for name, count in counts.items() if count}
        yield from (Finding(str(path), False, note) for note in dataset.notes)
        yield from _findings(dataset.source, counts, corrupt)
    if len(names) == 2:
        (one, ours), (other, theirs) = names.items()
        for source, alone, cure in (
            (one, ours - theirs, "validation says nothing about them: add images to it"),
            (other, theirs - ours, "training does not know them: add images to it, or remove these"),
        ):
            if alone:
                yield Finding(source, True, f"only here are the classes {_listed(sorted(alone))}: {cure}")


def _has_train(path: Path) -> bool:
    try:
        open_dataset(path, "train")
    except _FAULTS:
        return False
    return path.suffix != ".rec"


def _nothing(image: Any) -> Tensor:
    return torch.zeros(1)


def _counts(dataset: Images, workers: int) -> tuple[dict[str, int], list[CorruptImage]]:
    """The readable images of each class, and the others."""
    labels: Counter[int] = Counter()
    corrupt: list[CorruptImage] = []
    for _, batch, _, unreadable in loading.batches(dataset, _nothing, 64, workers):
        labels.update(batch.tolist())
        corrupt += unreadable
    names = dataset.classes
    if names is None:
        names = [str(number) for number in range(max(labels, default=-1) + 1)]
    return {name: labels[number] for number, name in enumerate(names)}, corrupt


def _findings(source: str, counts: dict[str, int], corrupt: Sequence[CorruptImage]) -> Iterator[Finding]:
    total = sum(counts.values())
    least, most = (min(counts.values()), max(counts.values())) if counts else (0, 0)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    classes = f"{len(counts)} class{'es' * (len(counts) != 1)}"
    yield Finding(source, not total, f"{total:,} images of {classes}, {each} of each")
    if corrupt:
        shown = _listed([f"{error.file} ({error.reason})" for error in corrupt])
        yield Finding(source, True, f"{counted(len(corrupt), 'image')} cannot be read: {shown}: delete or replace them")
    empty = [name for name, count in counts.items() if not count]
    if empty:
        cure = "add some, or delete the folder in every split"
        yield Finding(source, True, f"without a readable image: {_listed(empty)}: {cure}")
