"""``octaveconv train``: runs a recipe, and resumes a run where it stopped."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from .._text import counted, say, text_table
from ..errors import Stopped, UsageError, raise_together
from ..train.recipe import Recipe, find, included, problems, read_yaml
from ._arguments import add_model, add_threads, told_to_skip


def add(parser: argparse.ArgumentParser) -> None:
    """Train with a recipe, whose fields are MODEL and options: alone, or with torchrun.

    Example: octaveconv train --recipe cifar10 --data cifar10 --alpha 0.25
    """
    parser.usage = "%(prog)s [MODEL] [--recipe FILE] --data SRC [options] | --resume DIR"
    add_model(parser, "a network, or a run or file to fine-tune (oct_resnetv2_50)", optional=True)
    parser.add_argument("--recipe", metavar="R", type=Path, help="name or file of a recipe; list shows those there are")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="resume this run, to the same result")
    parser.add_argument("--fields", action="store_true", help="print all further options, a recipe's fields, and exit")
    for item in fields(Recipe):
        if item.name == "model":
            continue
        if item.name == "dtype":
            parser.add_argument(
                "--device", metavar="D", choices=["cpu", "cuda"], help="cpu or cuda (cuda if there is one)"
            )
        if item.name == "seed":
            add_threads(parser)
        option = f"--{item.name.replace('_', '-')}"
        if isinstance(item.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
        else:
            shown = item.metadata["help"] if item.metadata.get("main") else argparse.SUPPRESS
            parser.add_argument(option, metavar="V", help=shown)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="where runs are (%(default)s)")
    parser.add_argument("--name", metavar="NAME", help="the run's folder in it (the network, and alpha)")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's logs as well")


def run(args: argparse.Namespace) -> Any:
    """Train, or resume training; return the last epoch's figures."""
    if args.fields:
        print(text_table([["field", "default", "meaning"], *describe()]))
        return describe()
    if args.recipe == Path("list") and not args.recipe.is_file():
        say(*(f"{name:14}{text}" for name, text in recipes()))
        return recipes()
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
        is_first = processes.rank() == 0
        resumed = _asked_to_resume(args)
        training: Any = None
        if resumed is None:
            training = Training(*_recipe(args, device))
            resumed = _newest(args, training.recipe) if restarts else None
        if resumed and is_first:
            held.enter_context(RunFolder.open(resumed).alone())
        resumed = processes.gather(resumed)[0]  # so none reads the checkpoint before the first has the lock
        if resumed:
            state = RunFolder.open(resumed).load()
            training = training or Training(*_of_run(args, resumed, state, device))
            training.restore(state)
        folder = _folder(args, training, resumed, held) if is_first else None
        if not is_first:
            args.json = None
        try:
            with told_to_skip():
                row = train(training, folder)
        except Stopped as error:
            if folder is None:
                raise
            raise Stopped(f"{error}; resume: octaveconv train --resume {folder.path}") from error
        if folder is not None:
            _tell_next(folder, training.recipe)
        return row


def describe() -> list[list[str]]:
    """Name, default and meaning of each field of a recipe."""
    return [[item.name, _shown(getattr(Recipe(), item.name)), item.metadata["help"]] for item in fields(Recipe)]


def recipes() -> list[list[str]]:
    """Name and first line of each recipe of this package."""
    return [[name, path.read_text().partition("\n")[0].lstrip("# ")] for name, path in included().items()]


def _shown(value: Any) -> str:
    return "" if value in (None, "", {}) else f"{value:g}" if isinstance(value, float) else str(value).lower()


def _file(args: argparse.Namespace) -> dict[str, Any]:
    return read_yaml(find(args.recipe)) if args.recipe else {}


def _options(args: argparse.Namespace) -> dict[str, Any]:
    given = {item.name: getattr(args, item.name) for item in fields(Recipe)}
    return {name: value for name, value in given.items() if value is not None}


def _recipe(args: argparse.Namespace, device: str) -> tuple[Recipe, str, Any]:
    """The recipe of a new run, with the size that its weights record unless one is given; the device; these weights.

    Raises:
        UsageError: the message lists everything that is wrong.
    """
    from ..models.create import source
    from ..train.check import complaints
    from ..train.folder import check_name

    try:
        given = _file(args) | _options(args)
    except UsageError as error:
        raise_together([*args.wrong, error, *map(UsageError, problems(_options(args)).values())])
        raise
    wrong = problems(given)
    found: list[Exception] = [*args.wrong, *map(UsageError, wrong.values())]
    recipe = Recipe.of({name: value for name, value in given.items() if name not in wrong})
    for check in (recipe.checked, lambda: check_name(_name(args, recipe))):
        try:
            check()
        except UsageError as error:
            found.append(error)
    try:
        name, start = source(recipe.model, recipe.checkpoint or None)
    except (ValueError, OSError):  # `complaints` finds it again
        start = None
    if start is not None:
        recorded = {"size": start.about.size, "crop_pct": start.about.pretrained_cfg.get("crop_pct")}
        recorded = {field: value for field, value in recorded.items() if value is not None and field not in given}
        origin = {"model": name, "checkpoint": recipe.checkpoint or recipe.model}
        recipe = Recipe.of(recipe.to_dict(), recorded, origin)
    if found:
        others = complaints(recipe, device, start)
        raise_together(found + [error for error in others if "data" not in wrong or "no images" not in str(error)])
    return recipe, device, start


def _of_run(args: argparse.Namespace, folder: Path, state: dict[str, Any], device: str) -> tuple[Recipe, str, Any]:
    """The recipe of a run that is resumed, and the weights in its checkpoint: those it started from may be gone."""
    from ..weights import files as weights

    if not isinstance(state.get("recipe"), dict):
        raise UsageError(f"the checkpoint of {folder} is not one of octaveconv train, which records its recipe")
    recipe, trained = Recipe.of(state["recipe"]).complete(), state.get("epoch")
    if args.epochs is not None:
        recipe = Recipe.of(recipe.to_dict(), {"epochs": args.epochs})
        if isinstance(trained, int) and recipe.epochs < trained:
            raise UsageError(
                f"{folder} has trained {counted(trained, 'epoch')} already: --epochs must be at least that"
            )
    return recipe, device, weights.of_state(folder, state)


def _name(args: argparse.Namespace, recipe: Recipe) -> str:
    return args.name or Path(recipe.model).name + ("" if recipe.alpha is None else f"-{recipe.alpha:g}")


def _asked_to_resume(args: argparse.Namespace) -> Path | None:
    """The run that is named, if one is."""
    if args.resume:
        raise_together(args.wrong)
    if args.resume and (args.recipe or _options(args).keys() - {"epochs"}):
        raise UsageError("--resume continues a run with its own recipe: omit the other options (all but --epochs)")
    return args.resume  # type: ignore[no-any-return]


def _newest(args: argparse.Namespace, recipe: Recipe) -> Path | None:
    """The newest run of a recipe, for torchrun, which starts this again after a failure."""
    from ..train.folder import RunFolder

    name = _name(args, recipe)
    runs = [path for path in args.out.glob("*") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", path.name)]
    runs = [path for path in runs if any(path.glob("last*.pth")) and RunFolder(path).config() == recipe.to_dict()]
    return max(runs, key=lambda path: path.stat().st_ctime, default=None)


def _folder(args: argparse.Namespace, training: Any, resumed: Path | None, held: ExitStack) -> Any:
    """The run's folder, new or resumed; prints what is about to be done."""
    from ..train.folder import RunFolder

    recipe = training.recipe
    if resumed:
        folder = RunFolder.open(resumed, args.tensorboard)
        folder.truncate(training.epoch + 1)
        if args.epochs is not None:
            folder.save(training.state())  # so that this run has as many epochs however often it is resumed
            folder.write_config(recipe.to_dict(), again=True)
        if training.epoch >= recipe.epochs:
            say(
                f"{folder.path} is finished: it has trained its {counted(recipe.epochs, 'epoch')} (to train on: "
                f"--epochs N)"
            )
            return folder
        say(f"resuming {folder.path} in epoch {training.epoch + 1}, step {training.step} of {training.steps}")
    else:
        folder = RunFolder.new(args.out, _name(args, recipe), args.tensorboard)
        held.enter_context(folder.started())
        held.enter_context(folder.alone())
        folder.write_config(recipe.to_dict())
    folder.write_env()
    scaled = f" (lr {recipe.lr:g} is for a batch of {recipe.lr_batch_size})" if recipe.lr_batch_size else ""
    say(
        f"{folder.path}: batch {recipe.batch_size}, learning rate {recipe.scaled_lr():g}{scaled}, {recipe.dtype}, "
        f"{training.device}; {len(training.train_set):,} images of {recipe.size}x{recipe.size} pixels, "
        f"{counted(training.steps, 'step')} per epoch, {counted(training.workers, 'loading worker')}",
        *filter(None, [training.chosen]),
        *training.train_set.notes,
        *training.val_set.notes,
    )
    return folder


def _tell_next(folder: Any, recipe: Recipe) -> None:
    """Print where the trained network is, and what to type next."""
    path, data = shlex.quote(str(folder.path)), shlex.quote(recipe.val_data or recipe.data)
    say(
        f"the network: {folder.path / 'model.safetensors'}; next:",
        f"  octaveconv eval {path} --data {data}",
        f"  octaveconv predict {path} IMAGE",
        f"  octaveconv export {path} --out {path}/model.onnx",
    )
