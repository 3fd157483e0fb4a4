"""The recipe: hostile YAML, values that cannot be, all of them at once, and what is chosen where nothing is given."""

import json
import re
import time
from itertools import pairwise

import pytest

from octaveconv import _yaml, cli
from octaveconv.errors import UsageError
from octaveconv.train import Recipe, read_yaml
from octaveconv.train.defaults import settle

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"line 2: \*a is an alias: write its value out"),
        ("&a [*a]", "is an alias"),
        ("[" * 20_000, "more than 16,384 characters"),
        ("[" * 16_000, "line 1: it is nested more than 20 levels deep"),
        ("- " * 8000, "nested more than 20 levels deep"),
        ("? " * 8000, "nested more than 20 levels deep"),
        ("{a: " * 4000, "nested more than 20 levels deep"),
        ("1: 2", "line 1: a key is not text but int: write it in quotes"),
        ("no: 2", "a key is not text but bool"),
        ("? [a]\n: b", "a key is not text but seq"),
        ("lr: 1\nepochs: 3\nlr: 2", "line 3: the key 'lr' is there twice"),
        ("<<: {a: 1}", "line 1: merge is not text, a number"),
        ("a: !!python/object/apply:os.system [x]", "is not text, a number"),
        ("a: !!binary x", "binary is not text"),
        ("a: 2001-99-99", "timestamp is not text"),
        ("a: !!int ''", "a value cannot be read"),
        ("a: !!bool x", "a value cannot be read"),
        ("a: " + "9" * 5000, "a value cannot be read"),
        ("a: [", "line 1: "),
        ("a: \x07", "special characters are not allowed"),
        ("a: 1\n---\nb: 2", "another document"),
    ],
)
def test_yaml_that_does_harm_is_one_line_at_once(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(UsageError, match=rf"^the recipe \S+ cannot be read: .*{message}") as info:
        read_yaml(path)
    assert time.perf_counter() - start < 2, "a second, on a machine that does other work too"
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 500


def test_a_recipe_that_is_no_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    with pytest.raises(UsageError, match="it is not text in UTF-8"):
        read_yaml(path)
    path.write_text("- epochs")
    with pytest.raises(UsageError, match="must map fields to values"):
        read_yaml(path)


def test_what_is_written_is_read():
    same = [1, 2.5]
    data = {"a": same, "b": same, "c": {"d": None, "e": "no", "f": "1e-4", "g": 1e-5}, "text": "ü\n: x"}
    assert _yaml.load(_yaml.dump(data)) == data
    for wrong in ({1: 2}, {"a": {"b": b"c"}}, {"a": "x" * 20_000}):
        with pytest.raises(ValueError, match=r"not text|characters"):
            _yaml.dump(wrong)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", "1e23", "epochs must be a whole number, got '1e23'"),
        ("epochs", "-5", "epochs must be at least 1, got -5"),
        ("epochs", 10**30, "epochs must be at most 1000000, got a number of more than 20 digits"),
        ("epochs", "9" * 5000, "epochs must be a whole number, got '9999"),
        ("size", "2**40", "size must be a whole number, got '2**40'"),
        ("size", 2**40, "size must be at most 32768, got 1099511627776"),
        ("lr", "inf", "lr must be a finite number, got inf"),
        ("lr", float("inf"), "lr must be a finite number, got inf"),
        ("lr_batch_size", 10**400, "lr_batch_size must be below 10^18, got a number of more than 20 digits"),
        ("lr", 10**400, "lr must be a number, got a number of more than 20 digits"),
        ("alpha", float("nan"), "alpha must be a finite number, got nan"),
        ("alpha", 1.5, "alpha must be at most 1, got 1.5"),
        ("alpha", True, "alpha must be a number, got True"),
        ("label_smoothing", 2, "label_smoothing must be at most 1, got 2"),
        ("seed", 2**64, "seed must be at most"),
        ("data", ["a"], "data must be text, got a list"),
        ("model_args", "[" * 20_000, "model_args must be a mapping, as in {width: 16}, got '[[["),
        ("model_args", "{a: &a [b], c: *a}", "model_args must be a mapping"),
        ("frob", 3, "a recipe has no field 'frob': octaveconv train --fields lists them"),
        (7, 3, "a recipe has no field 7: octaveconv train --fields lists them"),
    ],
)
def test_a_value_that_cannot_be(name, value, message):
    with pytest.raises(UsageError) as info:
        Recipe.of({name: value})
    assert str(info.value).startswith(message)
    assert len(str(info.value)) < 200


def test_all_that_is_wrong_is_listed(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: .inf\nalpha: .nan\nepochz: 3\n")
    words = ["oct_resnet51", "--recipe", str(path), "--epochs", "-5", "--size", "2**40", "--opt", "sgdd"]
    words += ["--name", "a/b", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "runs")]
    assert cli.main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("octaveconv: 9 things are wrong: (1) lr must be a finite number, got inf; (2) ")
    for part in (
        "alpha must be", "no field 'epochz': did you mean epochs?", "epochs must be at least 1, got -5",
        "size must be",
        "there is no network 'oct_resnet51': did you mean", "no optimizer 'sgdd'",
        "there is no folder or file",
        "'a/b' is not a name for a run",
    ):  # fmt: skip
        assert part in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("images", "given", "expected"),
    [
        (1_281_167, {}, (1024, 0.4, 120, 5)),  # the original's recipe
        (50_000, {}, (128, 0.05, 60, 5)),
        (1000, {}, (16, 0.00625, 60, 5)),
        (20, {}, (8, 0.003125, 60, 5)),
        (3, {}, (3, 0.1 * 3 / 256, 60, 5)),
        (1000, {"batch_size": 64}, (64, 0.025, 60, 5)),
        (1000, {"lr": 0.4, "epochs": 4}, (16, 0.4, 4, 1)),
        (1000, {"checkpoint": "a.pth"}, (16, 0.00625, 30, 5)),
        (1000, {"model": "oct_resnetv2_50_a250"}, (16, 0.00625, 30, 5)),
        (10_000, {"opt": "adamw"}, (64, 0.00025, 60, 5)),
        (1000, {"lr_batch_size": 256}, (16, 0.1, 60, 5)),
    ],
)
def test_what_is_left_open_is_chosen_by_the_images(images, given, expected):
    recipe, told = settle(Recipe.of(given), images)
    assert (recipe.batch_size, recipe.lr, recipe.epochs, recipe.warmup_epochs) == expected
    assert not {*given} & {*re.findall(r"\w+", told)}
    assert f"chosen for {images:,} images: " in told
    assert settle(recipe, 5) == (recipe, "")
    json.dumps(recipe.to_dict(), allow_nan=False)


def test_a_chosen_batch_can_be_divided():
    assert settle(Recipe(), 1000, 6)[0].batch_size == 18


def test_there_is_no_rate_for_every_optimizer():
    with pytest.raises(UsageError, match="there is no rule for the learning rate of rmsprop: give lr"):
        settle(Recipe(opt="rmsprop"), 1000)
    with pytest.raises(UsageError, match=r"the learning rate of a\\n\\x1b\[2J: give lr"):
        settle(Recipe(opt="a\n\x1b[2J"), 1000)
    assert settle(Recipe(opt="rmsprop", lr=0.1), 1000)[0].lr == 0.1


def test_a_run_has_a_whole_recipe():
    with pytest.raises(UsageError, match="the recipe of this run has lost its epochs, lr"):
        Recipe(batch_size=8, warmup_epochs=0).complete()
