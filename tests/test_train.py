"""Training: the same run whatever interrupts it, and what the recipe asks for."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from folders import encoded, make_folder, make_records, make_tar, webdataset_shards
from forks import Fork, impatient, ranks, wait_for

import octaveconv.models  # noqa: F401  # registers
from octaveconv import cli
from octaveconv.data import datasets, loading
from octaveconv.data.augment import generators_kept, seed_generators, seed_of, training_batches
from octaveconv.data.datasets import CorruptImage, open_dataset
from octaveconv.errors import Stopped, UsageError
from octaveconv.nn import OctBatchNorm2d
from octaveconv.train import RunFolder
from octaveconv.train import lock as _lock
from octaveconv.train.loop import Training, train
from octaveconv.train.recipe import Recipe, read_yaml

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
SMALL = dict(
    model="oct_resnetv2_26", alpha=0.5, model_args=dict(layers=[1, 1, 1, 1], width=4, stem="3x3"), size=16, epochs=2,
    batch_size=8, lr=0.1, warmup_epochs=0.5, crop="padded", crop_pct=1.0, dropout=0.2, workers=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_folder(root / "train", (20, 14))
    make_folder(root / "val", (3, 4))
    return str(root)


def training(folder, **changes):
    return Training(Recipe.of(SMALL, {"data": folder} | changes), "cpu")


def weights_of(run):
    return {key: tensor.clone() for key, tensor in run.model.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


class Memory:
    """In place of a run folder: keeps states, and may interrupt."""

    def __init__(self, stop_after=None):
        self.states, self.rows, self.stop_after, self.best = [], [], stop_after, []

    def save(self, state, best=False):
        state = {**state, "model": {k: v.clone() for k, v in state["model"].items()}}
        self.states.append(torch.load(_bytes(state), weights_only=True))
        self.best.append(best)
        if len(self.states) == self.stop_after:
            raise Stopped("enough")

    def append(self, row):
        self.rows.append(row)

    def curves(self):
        pass

    def finish(self, state, metadata):
        self.final, self.metadata = state, metadata


def _bytes(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


VARIANTS = [
    dict(),
    dict(ema=0.9, mixup=0.2, cutmix=1.0, mix_off_epochs=1, label_smoothing=0.1),
    dict(accumulate=2, clip_grad=1.0, crop="resized", color_jitter=0.4),
    dict(dtype="bf16", opt="adamw", lr=0.001, layer_decay=0.7),
    dict(dtype="fp16", freeze_bn=True, grad_checkpointing=True),
]


@pytest.mark.parametrize(  # stopped in the middle of the first epoch; in the second
    ("changes", "stop_after"),
    [
        (VARIANTS[0], 1),
        (VARIANTS[1], 3),
        pytest.param(VARIANTS[4], 1, marks=pytest.mark.slow),
        pytest.param(VARIANTS[2], 1, marks=pytest.mark.slow),
        pytest.param(VARIANTS[3], 3, marks=pytest.mark.slow),
    ],
    ids=lambda value: " ".join(value) or "plain" if isinstance(value, dict) else str(value),
)
def test_a_run_that_is_continued_ends_bit_identical(data, changes, stop_after):
    whole, memory = training(data, save_steps=3, **changes), Memory()
    train(whole, memory)
    assert len(memory.states) == 4  # 4 steps an epoch: after step 3 and at the end, twice
    interrupted = Memory(stop_after)
    with pytest.raises(Stopped):
        train(training(data, save_steps=3, **changes), interrupted)
    again, rest = training(data, save_steps=3, **changes), Memory()
    again.restore(interrupted.states[-1])
    train(again, rest)
    assert_same(weights_of(again), weights_of(whole))
    assert_same(rest.final, memory.final)
    assert rest.states[-1]["best"] == memory.states[-1]["best"]
    assert rest.rows[-1]["train_loss"] == memory.rows[-1]["train_loss"]


def test_loading_workers_change_nothing(data):
    runs = [training(data, workers=workers, epochs=1, color_jitter=0.4, lighting=0.1) for workers in (0, 2)]
    for run in runs:
        train(run, None)
    assert_same(weights_of(runs[0]), weights_of(runs[1]))


def test_another_seed_gives_another_run(data):
    runs = [training(data, seed=seed, epochs=1) for seed in (0, 1)]
    for run in runs:
        train(run, None)
    assert not torch.equal(runs[0].model.fc.weight, runs[1].model.fc.weight)


def test_parts_of_a_step_make_the_whole_step(data):
    """Without batch statistics and dropout, accumulated gradients are those of the whole batch."""
    runs = [training(data, accumulate=parts, epochs=1, freeze_bn=True, dropout=0) for parts in (1, 4)]
    for run in runs:
        train(run, None)
    for whole, parts in zip(runs[0].model.parameters(), runs[1].model.parameters()):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_each_epoch_takes_every_image_once_in_another_order(data):
    images = open_dataset(data, "train")

    def order(epoch, start=0):
        batches = training_batches(
            images, lambda image: torch.zeros(1), seed=0, epoch=epoch, start=start, batch_size=8, parts=2, workers=0
        )
        return [numbers.tolist() for _, _, numbers in batches]

    first = order(0)
    taken = [number for batch in first for number in batch]
    assert len(taken) == len(set(taken)) == 32  # 34 images, 4 steps of 8
    assert order(0) == first
    assert order(0, start=3) == first[6:]
    assert order(1) != first


@pytest.fixture
def damaged(tmp_path):
    """Images of two classes, the first and last ones and some between damaged; and the names of those."""
    bad = [("cat", 0), ("cat", 5), ("cat", 6), ("cat", 11), ("dog10", 8)]
    make_folder(tmp_path / "train", (12, 9), corrupt=bad)
    make_folder(tmp_path / "val", (3, 4), corrupt=[("cat", 1)])
    return str(tmp_path), [f"{tmp_path}/train/{name}/{i}.png" for name, i in bad]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_damaged_image_ends_the_run_with_one_line_or_is_replaced(damaged, workers, tmp_path, capfd):
    folder, _ = damaged
    argv = options(folder, tmp_path / "runs", epochs=2, batch_size=4, workers=workers)
    assert cli.main(argv) == 1
    error = capfd.readouterr().err
    assert re.fullmatch(
        r"octaveconv: .*/train/\w+/\d+\.png cannot be read: it is not an image that Pillow knows: repair or delete it, "
        r"or skip such images with --skip-corrupt\n",
        error,
    )
    assert cli.main([*argv, "--skip-corrupt", "--json", str(tmp_path / "row.json")]) == 0
    out, error = capfd.readouterr()
    assert error == ""
    told = re.findall(r"^  (\S+\.png): (.*)$", out, re.MULTILINE)
    assert f"{folder}/val/cat/1.png" in dict(told)
    assert len(told) == len(dict(told)) == json.loads((tmp_path / "row.json").read_text())["skipped"] <= 6
    assert f", {len(told)} so far" in out


def test_a_replaced_image_brings_its_own_label(damaged):
    folder, bad = damaged
    images = open_dataset(folder, "train")
    skipped, taken = {}, []
    for epoch in range(3):
        arguments = dict(seed=0, epoch=epoch, start=0, batch_size=3, parts=1, workers=0, skipped=skipped)
        for content, labels, numbers in training_batches(images, _content, **arguments):
            assert len(content) == len(labels) == len(numbers) == 3  # always full
            for one, label, number in zip(content, labels.tolist(), numbers.tolist()):
                image, expected = images.read(number)
                assert label == expected == (number >= 12)
                assert torch.equal(one, _content(image))
                taken.append(number)
    assert len(taken) == 3 * 21
    names = [images.filename(number) for number in taken]
    assert {*names}.isdisjoint(bad)
    assert {*skipped} == {*bad}
    assert {name: names.count(f"{folder}/train/{name}.png") for name in OFTEN} == OFTEN


OFTEN = {"cat/1": 9, "cat/2": 3, "cat/7": 9, "dog10/0": 6, "dog10/7": 3}  # in three epochs


def _content(image):
    return torch.from_numpy(np.array(image)).sum((0, 1))


def test_a_run_with_damaged_images_is_continued_bit_identically(damaged):
    folder, _ = damaged
    changes = dict(skip_corrupt=True, save_steps=2, batch_size=4, mixup=0.2)
    whole = training(folder, **changes)
    train(whole, None)
    interrupted = Memory(stop_after=1)
    with pytest.raises(Stopped):
        train(training(folder, **changes), interrupted)
    again = training(folder, workers=1, **changes)
    again.restore(interrupted.states[-1])
    train(again, None)
    assert_same(weights_of(again), weights_of(whole))


def test_nothing_but_damaged_images_ends_the_run(tmp_path):
    make_folder(tmp_path / "train", (4, 4), corrupt=[(name, i) for name in ("cat", "dog10") for i in range(4)])
    make_folder(tmp_path / "val", (2, 2))
    with pytest.raises(CorruptImage, match="it is not an image that Pillow knows"):
        train(training(str(tmp_path), skip_corrupt=True), None)


def test_validation_has_the_numbers_of_training(tmp_path, capsys):
    """With a class that is empty there, or not there at all; one that training does not know is refused."""
    make_folder(tmp_path / "train", (6, 5, 4))
    make_folder(tmp_path / "val", (3, 4, 2))
    for file in (tmp_path / "val" / "cat").iterdir():
        file.unlink()
    for _ in range(2):
        run = training(str(tmp_path))
        assert run.model.num_classes == run.val_set.num_classes == 3
        assert {label for _, label in run.val_set} == {1, 2}
        assert run.validate(run.model).images == 6
        if (tmp_path / "val" / "cat").exists():
            (tmp_path / "val" / "cat").rmdir()
    (tmp_path / "train" / "cat").rename(tmp_path / "cat")
    (tmp_path / "train" / "bird").mkdir()
    (tmp_path / "cat").rename(tmp_path / "val" / "cat")
    assert cli.main(options(str(tmp_path), tmp_path / "runs")) == 2
    assert (
        "images of classes that are not among the 3 expected ones (bird, dog2, dog10): cat" in capsys.readouterr().err
    )


def test_the_learning_rate(data):
    run = training(data, epochs=3, warmup_epochs=1, lr=0.1, lr_batch_size=4)  # 0.2 for a batch of 8
    rates = []
    for epoch in range(3):
        for step in range(run.steps):
            run.epoch, run.step = epoch, step
            rates.append(run.learning_rate())
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert rates[4:] == pytest.approx([0.1 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])


def test_seeds_of_neighbours_are_unrelated():
    seeds = {seed_of(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000
    bits = torch.tensor([[seed >> bit & 1 for bit in range(32)] for seed in seeds], dtype=torch.float32)
    assert (bits.mean(0) - 0.5).abs().max() < 0.03
    assert len({seed_of(0, 1), seed_of(1, 0), seed_of(0, 1, 0)}) == 3


def test_the_generators_go_on_as_before():
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    drawn = []
    for _ in range(2):
        with generators_kept():
            seed_generators(1, 2)
            drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()) == str(before[2])


def test_a_run_of_a_version_with_other_random_streams_is_refused(data, tmp_path, capsys):
    """As those of version 0.1.0, whose checkpoints do not say which streams they used; their weights still load."""
    assert cli.main(options(data, tmp_path, epochs=1)) == 0
    folder = tmp_path / "oct_resnetv2_26-0.5"
    state = torch.load(folder / "last.pth", weights_only=True)
    del state["streams"]
    torch.save(state, folder / "last.pth")
    before = (folder / "results.csv").read_bytes()
    assert cli.main(["train", "--resume", str(folder), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "finish it with that version (env.json names it), start again, or give its last.pth as the" in error
    assert len(error.splitlines()) == 1
    assert (folder / "results.csv").read_bytes() == before
    run = training(data, checkpoint=str(folder / "last.pth"))
    assert_same(weights_of(run), dict(state["model"]))


@pytest.mark.slow
def test_compiled(data):
    runs = [training(data, compile=compiled, epochs=1, dropout=0, lr=1e-3) for compiled in (False, True)]
    for run in runs:
        train(run, None)
    for eager, compiled in zip(runs[0].model.parameters(), runs[1].model.parameters()):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)


def test_frozen_norms_stay_as_they_are(data):
    run = training(data, freeze_bn=True, epochs=1)
    before = {
        name: module.state_dict() for name, module in run.model.named_modules() if isinstance(module, OctBatchNorm2d)
    }
    before = {name: {k: v.clone() for k, v in state.items()} for name, state in before.items()}
    train(run, None)
    for name, state in before.items():
        assert_same(run.model.get_submodule(name).state_dict(), state)


def test_a_loss_that_is_not_finite_stops_the_run(data):
    with pytest.raises(
        RuntimeError, match=r"loss is (nan|inf) in epoch \d, step \d, at learning rate [\d.]+e\+\d+ \(images .*png"
    ):
        train(training(data, lr=1e30, warmup_epochs=0), None)


@pytest.mark.parametrize("kind", ["tar", "rec", "wds"])
def test_other_kinds_of_data(tmp_path, kind):
    make_folder(tmp_path / "set" / "train", (6, 6))
    make_folder(tmp_path / "set" / "val", (3, 2))
    if kind == "tar":
        changes = dict(data=str(make_tar(tmp_path / "set.tar", tmp_path / "set")))
    elif kind == "rec":
        for part in ("train", "val"):
            make_records(tmp_path / f"{part}.rec", [(i % 2, encoded(i)) for i in range(12)])
        changes = dict(data=str(tmp_path / "train.rec"), val_data=str(tmp_path / "val.rec"), num_classes=2)
    else:
        webdataset_shards(tmp_path)
        for shard in tmp_path.glob("val-*.tar"):
            shard.with_name(shard.name.replace("val", "train")).write_bytes(shard.read_bytes())
        changes = dict(data=f"wds/{tmp_path}", num_classes=3)
    row = train(training(**{"folder": "", "epochs": 1, "batch_size": 4} | changes), None)
    assert row["epoch"] == 1
    assert 0 <= row["top1"] <= 100


def test_weights_of_other_classes_start_the_head_anew(data, tmp_path, capsys):
    other = timm.create_model("oct_resnetv2_26", alpha=0.5, num_classes=7, **SMALL["model_args"])
    torch.save(other.state_dict(), tmp_path / "other.pth")
    run = training(data, checkpoint=str(tmp_path / "other.pth"), alpha=None)
    assert run.model.alpha == 0.5
    assert run.model.fc.out_features == 2
    assert torch.equal(run.model.conv1.weight, other.conv1.weight)
    assert "has 7 classes, the network 2: its classifier starts from random weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data=""), "there are no images: give data"),
        (dict(batch_size=9, accumulate=2), "in 2 parts: use a multiple of 2"),
        (dict(batch_size=10, accumulate=2, mixup=0.2), "in 2 parts of pairs to mix: use a multiple of 4"),
        (dict(batch_size=64), "is more than the 34 training images"),
        (dict(num_classes=3), "train has 2 classes, but num_classes is 3: omit it"),
        (dict(model="oct_resnetv2_27"), "did you mean oct_resnetv2_26"),
        (dict(model_args=dict(widht=3)), "oct_resnetv2_26 has no argument 'widht': did you mean width?"),
        (dict(opt="zzz"), "timm has no optimizer 'zzz': sgd, adamw and lamb"),
        (dict(model_args=dict(num_classes=7)), "num_classes is 2, but model_args have num_classes 7: omit it there"),
        (dict(model_args=dict(in_chans=1)), "oct_resnetv2_26 fails on color images of 16x16 pixels ("),
        (dict(model="test_resnet", alpha=None, model_args=dict(global_pool="")), "fails on color images of 16x16"),
        (dict(model="oct_resnet51", data="nothing"), "there is no network 'oct_resnet51'"),
        (dict(opt="sgdd", data="nothing"), "timm has no optimizer 'sgdd': did you mean sgd?"),
        (dict(weight_decy=0.1), "has no field 'weight_decy': did you mean weight_decay?"),
        (dict(frob=3), "has no field 'frob': octaveconv train --fields lists them"),
        (dict(epoch=3), "has no field 'epoch': did you mean epochs?"),
        (dict(epochs=0), "epochs must be at least 1, got 0"),
        (dict(epochs=1.5), "epochs must be a whole number, got 1.5"),
        (dict(lr="fast"), "lr must be a number, got 'fast'"),
        (dict(crop="middle"), "crop must be one of resized, padded, got 'middle'"),
        (dict(compile="maybe"), "compile must be true or false, got 'maybe'"),
    ],
)
def test_a_recipe_that_cannot_be(data, changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        training(data, **changes)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_complete_and_say_whether_they_were_reproduced(path):
    recipe = Recipe.of(read_yaml(path))
    with torch.device("meta"):
        model = timm.create_model(recipe.model, alpha=recipe.alpha, **recipe.model_args)
    assert model.alpha == recipe.alpha
    if path.stem != "cifar10":
        assert "Reproduced here: " in path.read_text()
        assert (recipe.lr, recipe.warmup_epochs, recipe.momentum, recipe.weight_decay) == (0.4, 5, 0.9, 1e-4)


def options(data, out, **changes):
    recipe = SMALL | dict(data=data) | changes
    return [
        "train",
        recipe.pop("model"),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--threads",
        "1",
        *(
            f"--{name.replace('_', '-')}={json.dumps(value) if isinstance(value, dict) else value}"
            for name, value in recipe.items()
        ),
    ]


def test_the_verb_and_its_folder(data, tmp_path, capsys):
    assert cli.main([*options(data, tmp_path, ema=0.9), "--json", str(tmp_path / "row.json")]) == 0
    folder = tmp_path / "oct_resnetv2_26-0.5"
    names = {
        "config.yaml",
        "env.json",
        "results.csv",
        "last.pth",
        "best.pth",
        "model.safetensors",
        "curves.png",
        "curves.svg",
    }
    assert names <= set(os.listdir(folder))
    assert yaml.safe_load((folder / "config.yaml").read_text()) == Recipe.of(SMALL, dict(data=data, ema=0.9)).to_dict()
    rows = (folder / "results.csv").read_text().splitlines()
    assert len(rows) == 3
    assert rows[0].startswith("epoch,lr,train_loss,top1,top5")
    assert json.loads((tmp_path / "row.json").read_text())["epoch"] == 2
    model = timm.create_model(
        "oct_resnetv2_26",
        alpha=0.5,
        num_classes=2,
        **SMALL["model_args"],
        checkpoint_path=str(folder / "model.safetensors"),
    )
    state = torch.load(folder / "last.pth", weights_only=True)
    assert_same(dict(model.state_dict()), dict(state["ema"]))
    assert cli.main(options(data, tmp_path, epochs=1)) == 0
    assert (tmp_path / "oct_resnetv2_26-0.5-2").is_dir()  # nothing is overwritten
    out = capsys.readouterr().out
    assert "batch 8, learning rate 0.1" in out
    assert cli.main(["train", "--resume", str(folder), "--lr", "1"]) == 2
    assert "--resume continues a run with its own recipe: omit the other options" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_starting_anew_continues_its_own_run(data, tmp_path, monkeypatch, capsys):
    for seed in (0, 1):  # the second is newer, and has the same name
        assert cli.main(options(data, tmp_path, epochs=1, seed=seed)) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert cli.main(options(data, tmp_path, epochs=1, seed=0)) == 0
    assert f"{tmp_path / 'oct_resnetv2_26-0.5'} is finished: it has trained its 1 epoch" in capsys.readouterr().out
    assert cli.main(options(data, tmp_path, epochs=1, seed=2)) == 0  # it had saved nothing yet
    assert (tmp_path / "oct_resnetv2_26-0.5-3").is_dir()


def test_a_finished_run_is_said_to_be_finished(data, tmp_path, capsys):
    assert cli.main(options(data, tmp_path, epochs=1)) == 0
    folder = tmp_path / "oct_resnetv2_26-0.5"
    before = {path.name for path in folder.iterdir()}
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(folder), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == (
        f"{folder} is finished: it has trained its 1 epoch (to train on: --epochs N)\n{what_next(folder, data)}"
    )
    assert {path.name for path in folder.iterdir()} == before


def what_next(folder, data):
    return (
        f"the network: {folder}/model.safetensors; next:\n  octaveconv eval {folder} --data {data}\n"
        f"  octaveconv predict {folder} IMAGE\n"
        f"  octaveconv export {folder} --out {folder}/model.onnx\n"
    )


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert cli.main(options(data, out, epochs=1)) == 0
    return out / "oct_resnetv2_26-0.5"


def test_a_run_is_extended(finished, data, tmp_path, capsys):
    """A finished one, or one that is not: on the schedule of the longer run from there on, and for good."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    resume = ["train", "--resume", str(folder), "--device", "cpu"]
    assert cli.main([*resume, "--epochs", "3"]) == 0
    out = capsys.readouterr().out
    assert f"resuming {folder} in epoch 2, step 0 of 4" in out
    assert out.endswith(what_next(folder, data))
    rows = (folder / "results.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["epochs"] == 3
    state = torch.load(folder / "last.pth", weights_only=True)
    assert (state["epoch"], state["recipe"]["epochs"]) == (3, 3)
    assert float(rows[1].split(",")[1]) == pytest.approx(0.05 * (1 + math.cos(math.pi * 6 / 10)), rel=1e-4)
    assert cli.main([*resume, "--epochs", "2"]) == 2
    assert "has trained 3 epochs already: --epochs must be at least that" in capsys.readouterr().err
    assert cli.main([*resume, "--epochs", "1e23"]) == 2
    assert "epochs must be a whole number, got '1e23'" in capsys.readouterr().err


def test_an_extended_run_stays_extended(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_step", lambda *_: math.nan)  # dies in its first step
        assert cli.main(["train", "--resume", str(folder), "--device", "cpu", "--epochs", "2"]) == 1
    assert cli.main(["train", "--resume", str(folder), "--device", "cpu"]) == 0
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 2


def test_ones_own_folder_with_defaults(data, tmp_path, capsys):
    small = ["--model-args", json.dumps(SMALL["model_args"]), "--size", "16", "--device", "cpu", "--threads", "1"]
    argv = ["train", "oct_resnetv2_26", "--data", data, "--out", str(tmp_path), *small]
    assert cli.main([*argv, "--epochs", "1", "--workers", "64"]) == 0
    out = capsys.readouterr().out
    assert "chosen for 34 images: batch_size 8, lr 0.003125, warmup_epochs 0.25\n" in out
    assert f" {loading.worker_count(64)} loading worker" in out
    assert loading.worker_count(64) <= os.cpu_count()
    folder = tmp_path / "oct_resnetv2_26"
    assert out.endswith(what_next(folder, data))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["batch_size"], config["lr"], config["epochs"]) == (8, 0.003125, 1)
    assert cli.main(["eval", str(folder), "--data", data, "--device", "cpu"]) == 0
    assert training(data, batch_size=None, lr=None, epochs=None).recipe.epochs == 60


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("out of memory"), KeyError("x")]
)
def test_a_failed_start_leaves_no_folder(data, tmp_path, monkeypatch, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr(Training, "train_step", fail)
    run = [*options(data, tmp_path / "new" / "runs")]
    with pytest.raises(KeyError) if isinstance(failure, KeyError) else nullcontext():
        assert cli.main(run) == 1
    assert not (tmp_path / "new").exists()
    (tmp_path / "new" / "runs" / "other").mkdir(parents=True)
    with suppress(KeyError):
        cli.main(run)
    assert os.listdir(tmp_path / "new" / "runs") == ["other"]


def test_a_run_that_fails_later_stays(data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main(options(data, tmp_path, epochs=1))
    assert cli.main(["train", "--resume", str(tmp_path / "oct_resnetv2_26-0.5"), "--device", "cpu"]) == 0
    assert (tmp_path / "oct_resnetv2_26-0.5" / "model.safetensors").exists()


def test_out_into_a_run_leaves_that_run_alone(finished, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert cli.main(options(data, folder, epochs=1)) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert (folder / "oct_resnetv2_26-0.5" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: [1], "last.pth is not a checkpoint of octaveconv train: start again"),
        (lambda state: {"state_dict": state["model"]}, "is not one of octaveconv train, which records its recipe"),
        (lambda state: state | {"recipe": {"lr": 1}}, "the recipe of this run has lost its epochs, batch_size, warmup"),
        (lambda state: state | {"recipe": {"frob": 1}}, "a recipe has no field 'frob'"),
        (lambda state: state | {"recipe": state["recipe"] | {"lr": math.inf}}, "lr must be a finite number, got inf"),
        (
            lambda state: state | {"epoch": "one"},
            "does not fit this run (ValueError: it is in epoch 'one', step 0 of 4)",
        ),
        (lambda state: state | {"step": 7}, "it is in epoch 1, step 7 of 4): are its data the same?"),
        (lambda state: state | {"optimizer": {"state": 1}}, "does not fit this run (KeyError: "),
        (lambda state: state | {"model": {1: torch.zeros(1)}}, "its entry '1' is not a named tensor"),
        (lambda state: {key: state[key] for key in state if key != "best"}, "does not fit this run (KeyError: 'best')"),
    ],
)
def test_a_checkpoint_of_another_program(finished, tmp_path, capsys, change, message):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    torch.save(change(torch.load(folder / "last.pth", weights_only=True)), folder / "last.pth")
    assert cli.main(["train", "--resume", str(folder), "--device", "cpu"]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert cli.main(["doctor", str(folder)]) in (0, 1)


def test_a_results_file_that_is_no_table(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for content, message in [
        (b"\x89PNG\r\n\x1a\n\xff", "results.csv is not a table ("),
        (b"epoch,top1\n1," + b"9" * 200_000 + b"\n", "results.csv is not a table (field larger than field limit"),
        (b"epoch,top1\n1,x\n", "results.csv cannot be drawn (could not convert string to float: 'x')"),
    ]:
        (folder / "results.csv").write_bytes(content)
        assert cli.main(["train", "--resume", str(folder), "--device", "cpu"]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert cli.main(["doctor", str(folder)]) in (0, 1)


def test_a_killed_loading_worker_ends_the_run_with_one_line(data, tmp_path, monkeypatch, capfd):
    decode = datasets.decode

    def dies(file):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(file)

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "decode", dies)
        capfd.readouterr()
        assert cli.main(options(data, tmp_path, workers=1)) == 1
        error = capfd.readouterr().err
    assert re.search(r"DataLoader worker .*(is killed by signal|exited unexpectedly)", error)
    assert len(error.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_dead_rank_ends_the_other(data, tmp_path):
    """With one line, instead of waiting for ever; what was saved stays."""
    both = ranks(cli.main, options(data, tmp_path, epochs=500, save_steps=1))
    folder = tmp_path / "oct_resnetv2_26-0.5"
    wait_for(folder / "last.pth")
    both[1].kill()
    assert both[0].wait(60) == 1
    assert both[1].wait() == -signal.SIGKILL
    error = both[0].output()[1]
    assert "octaveconv: " in error
    assert "Traceback" not in error
    assert RunFolder.open(folder).load()["epoch"] < 500


def test_fields_are_listed(capsys):
    assert cli.main(["train", "--fields"]) == 0
    assert "label_smoothing" in capsys.readouterr().out


def start(*command):
    """A process of ``python -m``."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


def ended_well(processes):
    for process in processes:
        assert process.wait() == 0, process.output()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_continue(data, tmp_path, number):
    run = Fork(cli.main, options(data, tmp_path, epochs=500, save_steps=1))
    folder = tmp_path / "oct_resnetv2_26-0.5"
    wait_for(folder / "last.pth")
    run.send_signal(number)
    assert run.wait() == 1
    error = run.output()[1]
    assert f"resume: octaveconv train --resume {folder}" in error
    assert len(error.splitlines()) == 1
    assert torch.load(folder / "last.pth", weights_only=True)["epoch"] < 500


@pytest.mark.slow
def test_a_run_is_continued_by_one_process(data, tmp_path, monkeypatch, capsys):
    """A second one is refused, with nothing touched, until the first is dead; its loading workers may live on."""
    folder = tmp_path / "oct_resnetv2_26-0.5"
    first = Fork(cli.main, options(data, tmp_path, epochs=4, save_steps=1, workers=1))
    wait_for(folder / "last.pth")
    first.send_signal(signal.SIGSTOP)
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(_lock, "PATIENCE", 0.5)
        assert cli.main(["train", "--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"{folder} is in use by process {first.pid} on " in error
    assert len(error.splitlines()) == 1
    second = ranks(impatient, ["train", "--resume", str(folder)])
    assert all(process.wait() for process in second)
    assert any("is in use by process" in process.output()[1] for process in second)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    first.kill()
    first.wait()
    assert cli.main(["train", "--resume", str(folder), "--device", "cpu"]) == 0
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 4


def interrupted(run, folder, **changes):
    """Two processes, both killed after the run's first checkpoint, and started anew by ``run``; the final state."""
    killed = ranks(cli.main, options(*folder, **changes))
    run_folder = folder[1] / "oct_resnetv2_26-0.5"
    wait_for(run_folder / "last.pth")
    for process in killed:
        process.kill()
    for process in killed:
        process.wait()
    ended_well(run(run_folder))
    assert len((run_folder / "results.csv").read_text().splitlines()) == 1 + changes["epochs"]
    return torch.load(run_folder / "last.pth", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["resumed", "anew"])
def test_two_processes_killed_and_continued(data, tmp_path, monkeypatch, how):
    """By the user, or by starting anew as torchrun does: the same end as that of a run which nothing disturbs."""
    changes = dict(epochs=3, save_steps=2, ema=0.9)
    ended_well(ranks(cli.main, options(data, tmp_path / "whole", **changes)))
    expected = torch.load(tmp_path / "whole" / "oct_resnetv2_26-0.5" / "last.pth", weights_only=True)

    def resumed(folder):
        return ranks(cli.main, ["train", "--resume", str(folder), "--threads", "1"])

    def anew(folder):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        return ranks(cli.main, options(data, folder.parent, **changes))

    state = interrupted({"resumed": resumed, "anew": anew}[how], (data, tmp_path / how), **changes)
    assert_same(dict(state["model"]), dict(expected["model"]))
    assert_same(dict(state["ema"]), dict(expected["ema"]))


@pytest.mark.slow
def test_torchrun_itself_starts_both_anew_after_one_is_killed(data, tmp_path):
    changes = dict(epochs=6, save_steps=2, ema=0.9)
    ended_well(ranks(cli.main, options(data, tmp_path / "whole", **changes)))
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "octaveconv")
    run = start(*torchrun, *options(data, tmp_path / "elastic", **changes))
    folder = tmp_path / "elastic" / "oct_resnetv2_26-0.5"
    wait_for(folder / "last.pth")
    workers = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    out, error = run.communicate(timeout=240)
    assert run.returncode == 0, error
    assert f"resuming {folder} in epoch" in out
    expected, state = (
        torch.load(tmp_path / name / "oct_resnetv2_26-0.5" / "last.pth", weights_only=True)
        for name in ("whole", "elastic")
    )
    assert_same(dict(state["model"]), dict(expected["model"]))
    assert_same(dict(state["ema"]), dict(expected["ema"]))
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 6
