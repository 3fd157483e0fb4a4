"""Files of every kind that this package writes, and what becomes of one in which a bit has flipped."""

import dataclasses
import os
import warnings
from unittest import mock

import timm
import torch
from deployed_files import small_files, taken_apart

import octaveconv as oc
import octaveconv.models
from octaveconv.about import About
from octaveconv.deploy import cache
from octaveconv.deploy.native import file as deployed
from octaveconv.models import create
from octaveconv.train import Recipe, RunFolder
from octaveconv.weights import files as weights

NETWORK = dict(layers=[1, 1, 1, 1], width=4, stem="3x3")


def make(folder):
    """A file of each kind in ``folder``, and what reads it."""
    run = RunFolder.new(folder, "run")
    model = create("oct_resnetv2_26", 0.5, num_classes=3, model_args=NETWORK)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    recipe = Recipe(model="oct_resnetv2_26", alpha=0.5, model_args=NETWORK, epochs=120)
    run.write_config(recipe.to_dict())
    about = About.of(model).metadata()
    state = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=3, about=about)
    run.save(state | dict(recipe=recipe.to_dict()), best=True)
    run.finish(model.state_dict(), about)
    weights.convert(run.best, model, "oct_resnetv2_26", folder / "converted.safetensors")
    octave, _ = oc.octavify(timm.create_model("test_resnet", num_classes=3).eval(), 0.5, torch.zeros(1, 3, 64, 64))
    weights.write(folder / "octavified.safetensors", octave.state_dict(), About.of(octave).metadata())
    (folder / "deployed.octave").write_bytes(next(small_files()))
    with mock.patch.dict(os.environ, OCTAVECONV_CACHE=str(folder)):
        for i in range(20):
            cache.Table("tuning.json").put(f"{i:x}" * 40, {"2": [1, 0, 2, 1] * 20})
    return {
        run.last: lambda path: run.load(),
        run.best: weights.read,
        run.path / "model.safetensors": weights.read,
        folder / "converted.safetensors": weights.read,
        folder / "octavified.safetensors": weights.read,
        folder / "deployed.octave": read_deployed,
        folder / "tuning.json": read_table,
    }


def read_deployed(path):
    data = path.read_bytes()
    deployed.loads(data, path.name)
    return taken_apart(data)


def read_table(path):
    """The rows; ValueError if they were found damaged."""
    with warnings.catch_warnings(), mock.patch.dict(os.environ, OCTAVECONV_CACHE=str(path.parent)):
        warnings.simplefilter("error")
        try:
            return cache.Table(path.name).known
        except RuntimeWarning as warning:
            raise ValueError(str(warning)) from warning


def same(one, other):
    """Whether two contents are equal, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, dict):
        return isinstance(other, dict) and [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def fate(path, read, expected, bit):
    """What becomes of a file in which a bit is flipped: noticed (named, in one line), harmless, or worse."""
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[bit // 8] ^= 1 << bit % 8
    path.write_bytes(broken)
    try:
        found = read(path)
    except ValueError as error:
        return "noticed" if path.name in str(error) and "\n" not in str(error) else "not named"
    except Exception as error:
        return f"raised {type(error).__name__}"
    finally:
        path.write_bytes(whole)
    return "harmless" if same(found, expected) else "unnoticed"
