"""``octaveconv train``: runs a recipe, and resumes a run where it stopped."""

from __future__ import annotations

import argparse
import os
import re
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from .._text import counted, say, text_table
from ..errors import Stopped, UsageError
from ..train.recipe import Recipe, read_yaml
from ._arguments import add_model, positive, told_to_skip


def add(parser: argparse.ArgumentParser) -> None:
    """Train with a recipe, whose fields are MODEL and options: alone, or with torchrun.

    Example: octaveconv train --recipe recipes/cifar10.yaml --data cifar10 --alpha 0.25
    """
    parser.usage = "%(prog)s [MODEL] [--recipe FILE] --data SRC [options] | --resume DIR"
    add_model(
        parser, "a network, or a run or file to fine-tune (that of the recipe, or oct_resnetv2_50)", optional=True
    )
    parser.add_argument("--recipe", metavar="FILE", type=Path, help="YAML file of fields; options override it")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="resume this run, to the same result")
    parser.add_argument("--fields", action="store_true", help="print every field of a recipe and exit")
    parser.add_argument("--name", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=["cpu", "cuda"], help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=positive, help=argparse.SUPPRESS)
    parser.add_argument("--tensorboard", action="store_true", help=argparse.SUPPRESS)
    for item in fields(Recipe):
        if item.name == "model":
            continue
        option = f"--{item.name.replace('_', '-')}"
        if isinstance(item.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
        else:
            shown = item.metadata["help"] if item.metadata.get("main") else argparse.SUPPRESS
            parser.add_argument(option, metavar="V", help=shown)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="where runs are (%(default)s)")


def run(args: argparse.Namespace) -> Any:
    """Train, or resume training; return the last epoch's figures."""
    if args.fields:
        print(text_table([["field", "default", "meaning"], *describe()]))
        return describe()
    import torch

    from .. import processes
    from ..train.folder import RunFolder
    from ..train.loop import Training, train

    if args.threads:
        torch.set_num_threads(args.threads)
    with (
        processes.joined(args.device or ("cuda" if torch.cuda.is_available() else "cpu")) as device,
        ExitStack() as held,
    ):
        # Each machine counts only the restarts that began on it.
        restarts = max(processes.gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))))
        resumed, is_first = _to_resume(args, restarts), processes.rank() == 0
        if resumed and is_first:
            held.enter_context(RunFolder.open(resumed).alone())
        resumed = processes.gather(resumed)[0]  # so none reads the checkpoint before the first has the lock
        state = RunFolder.open(resumed).load() if resumed else None
        recipe, start = _of_run(resumed, state) if resumed else _recipe(args)
        training = Training(recipe if resumed else recipe.checked(), device, start)
        if state:
            training.restore(state)
        folder = _folder(args, recipe, resumed, training, held) if is_first else None
        if not is_first:
            args.json = None
        try:
            with told_to_skip():
                return train(training, folder)
        except Stopped as error:
            if folder is None:
                raise
            raise Stopped(f"{error}; resume: octaveconv train --resume {folder.path}") from error


def describe() -> list[list[str]]:
    """Name, default and meaning of each field of a recipe."""
    return [[item.name, _shown(getattr(Recipe(), item.name)), item.metadata["help"]] for item in fields(Recipe)]


def _shown(value: Any) -> str:
    return "" if value in (None, "", {}) else f"{value:g}" if isinstance(value, float) else str(value).lower()


def _file(args: argparse.Namespace) -> dict[str, Any]:
    return read_yaml(args.recipe) if args.recipe else {}


def _options(args: argparse.Namespace) -> dict[str, Any]:
    given = {item.name: getattr(args, item.name) for item in fields(Recipe)}
    return {name: value for name, value in given.items() if value is not None}


def _recipe(args: argparse.Namespace) -> tuple[Recipe, Any]:
    """The recipe of a new run, with the size that its weights record unless one is given, and these weights."""
    from ..models.create import source

    given = _file(args) | _options(args)
    recipe = Recipe.of(given)
    name, start = source(recipe.model, recipe.checkpoint or None)
    if start is None:
        return recipe, None
    recorded = {"size": start.about.size, "crop_pct": start.about.pretrained_cfg.get("crop_pct")}
    recorded = {field: value for field, value in recorded.items() if value is not None}
    return Recipe.of(recorded, given, {"model": name, "checkpoint": recipe.checkpoint or recipe.model}), start


def _of_run(folder: Path, state: Any) -> tuple[Recipe, Any]:
    """The recipe of a run that is resumed, and the weights in its checkpoint: those it started from may be gone."""
    from ..weights import files as weights

    if not isinstance(state, dict) or not isinstance(state.get("recipe"), dict):
        raise UsageError(f"the checkpoint of {folder} is not one of octaveconv train, which records its recipe")
    return Recipe.of(state["recipe"]), weights.of_state(folder, state)


def _name(args: argparse.Namespace, recipe: Recipe) -> str:
    return args.name or recipe.model + ("" if recipe.alpha is None else f"-{recipe.alpha:g}")


def _to_resume(args: argparse.Namespace, restarts: int) -> Path | None:
    """The run to resume: the one named, or, if torchrun has restarted this after a failure, its newest."""
    if args.resume or not restarts:
        if args.resume and (args.recipe or _options(args)):
            raise UsageError("--resume continues a run with its own recipe: omit the other options")
        return args.resume  # type: ignore[no-any-return]
    from ..train.folder import RunFolder

    recipe, _ = _recipe(args)
    name = _name(args, recipe)
    runs = [path for path in args.out.glob(f"{name}*") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", path.name)]
    runs = [path for path in runs if any(path.glob("last*.pth")) and RunFolder(path).config() == recipe.to_dict()]
    return max(runs, key=lambda path: path.stat().st_ctime, default=None)


def _folder(args: argparse.Namespace, recipe: Recipe, resumed: Path | None, training: Any, held: ExitStack) -> Any:
    """The run's folder, new or resumed; prints what is about to be done."""
    from ..train.folder import RunFolder

    if resumed:
        folder = RunFolder.open(resumed, args.tensorboard)
        folder.truncate(training.epoch + 1)
        if training.epoch >= recipe.epochs:
            say(f"{folder.path} is finished: it has trained its {counted(recipe.epochs, 'epoch')}")
            return folder
        say(f"resuming {folder.path} in epoch {training.epoch + 1}, step {training.step} of {training.steps}")
    else:
        folder = RunFolder.new(args.out, _name(args, recipe), args.tensorboard)
        held.enter_context(folder.alone())
        folder.write_config(recipe.to_dict())
    folder.write_env()
    scaled = f" (lr {recipe.lr:g} is for a batch of {recipe.lr_batch_size})" if recipe.lr_batch_size else ""
    say(
        f"{folder.path}: batch {recipe.batch_size}, learning rate {recipe.scaled_lr():g}{scaled}, {recipe.dtype}, "
        f"{training.device}; {len(training.train_set):,} images of {recipe.size}x{recipe.size} pixels, "
        f"{training.steps} steps per epoch",
        *training.train_set.notes,
        *training.val_set.notes,
    )
    return folder
