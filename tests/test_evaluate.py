"""Exact counts, on one process and on two; what stops a score; what a score says about itself."""

import json
import sys

import pytest
import timm
import torch
from folders import encoded, make_folder, make_records, make_tar
from forks import ranks
from helpers import Fixed, classifier
from PIL import Image
from rich.console import Console
from torch import nn

import octaveconv.models  # noqa: F401  # registers
from octaveconv import _csv, cli, env, evaluate, processes
from octaveconv._text import text_table
from octaveconv.data.datasets import CorruptImage, Images, Stream, open_dataset, preprocessing
from octaveconv.errors import UsageError
from octaveconv.evaluate import EvalSettings

SMALL = EvalSettings(size=32, batch_size=4)


@pytest.fixture(scope="module")
def net():
    return classifier()


@pytest.fixture
def files(tmp_path):
    return make_folder(tmp_path / "set", (6, 3, 4))


def by_hand(net, files, size=32):
    """Top-1 and top-2 counts, one image at a time."""
    transform = preprocessing(net, size).transform()
    top1 = top2 = 0
    with torch.no_grad():
        for file, label in files:
            order = net(transform(Image.open(file).convert("RGB"))[None])[0].argsort(descending=True).tolist()
            top1 += order[0] == label
            top2 += label in order[:2]
    return top1, top2


@pytest.mark.parametrize("batch_size", [1, 4, 13, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_counts_are_exact(net, files, tmp_path, batch_size, workers):
    top1, _ = by_hand(net, files)
    assert 0 < top1 < 13
    seen = []
    settings = EvalSettings(size=32, batch_size=batch_size, workers=workers)
    score = evaluate.evaluate(net, open_dataset(tmp_path / "set"), settings, lambda *counts: seen.append(counts))
    assert (score.top1_count, score.top5_count, score.k) == (top1, 13, 3)
    assert (score.images, score.skipped, score.announced, score.processes) == (13, (), 13, 1)
    assert score.top1 == 100 * top1 / 13
    assert [images for images, _ in seen] == [*range(batch_size, 13, batch_size), 13]
    assert seen[-1][1] == top1


def test_a_tar_and_records_score_the_same(net, files, tmp_path):
    make_tar(tmp_path / "set.tar", tmp_path / "set")
    make_records(tmp_path / "set.rec", [(label, file.read_bytes()) for file, label in files])
    scores = [evaluate.evaluate(net, open_dataset(tmp_path / name), SMALL) for name in ("set", "set.tar", "set.rec")]
    assert len({(score.top1_count, score.top5_count, score.images) for score in scores}) == 1


def test_top_5_of_more_than_five_classes(files, tmp_path):
    records = make_records(tmp_path / "a.rec", [(i % 10, encoded(i)) for i in range(30)])
    logits = torch.randperm(10).float()
    score = evaluate.evaluate(Fixed(*logits), open_dataset(records), SMALL)
    assert (score.top1_count, score.top5_count, score.k) == (3, 15, 5)
    assert (score.top1, score.top5) == (10, 50)


def test_of_equal_logits_the_first_class_comes_first(tmp_path):
    records = make_records(tmp_path / "a.rec", [(i, encoded(i)) for i in range(7)])
    score = evaluate.evaluate(Fixed(*[1.0] * 7), open_dataset(records), SMALL)
    assert (score.top1_count, score.top5_count) == (1, 5)


def test_what_images_are_taken_for(net, files, tmp_path):
    """A matrix whose rows are the classes; of equal logits the first one counts."""
    dataset = open_dataset(tmp_path / "set")
    settings = EvalSettings(32, 4, confusion=True)
    score = evaluate.evaluate(net, dataset, settings)
    transform = preprocessing(net, 32).transform()
    counts = torch.zeros(3, 3, dtype=torch.long)
    for file, label in files:
        with torch.no_grad():
            counts[label, net(transform(Image.open(file).convert("RGB"))[None])[0].argmax()] += 1
    assert torch.equal(score.confusion, counts)
    assert score.confusion.trace() == score.top1_count
    assert evaluate.evaluate(net, dataset, SMALL).confusion is None
    assert "confusion" not in json.dumps(score.to_dict())
    tied = evaluate.evaluate(Fixed(0, 1, 1), dataset, settings)
    assert tied.confusion.tolist() == [[0, 6, 0], [0, 4, 0], [0, 3, 0]]
    assert evaluate.per_class(tied, ["cat", "dog2", "dog10"])[1:] == [
        ["cat", "6", "0", "0.00%", "dog2: 6"],
        ["dog2", "4", "4", "100.00%", ""],
        ["dog10", "3", "0", "0.00%", "dog2: 3"],
    ]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_low_precision_is_used_and_agrees(net, files, tmp_path, dtype):
    dtypes = set()
    hook = net.fc.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    score = evaluate.evaluate(net, open_dataset(tmp_path / "set"), EvalSettings(32, 4, dtype=dtype))
    hook.remove()
    assert dtypes == {evaluate.DTYPES[dtype]}
    assert abs(score.top1_count - by_hand(net, files)[0]) <= 2
    assert score.to_dict()["dtype"] == dtype


def test_the_network_is_evaluated_and_left_as_it_was(files, tmp_path):
    net = classifier().train()
    net.bn1.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    score = evaluate.evaluate(net, open_dataset(tmp_path / "set", transform=lambda image: None), SMALL)
    assert net.training
    assert not net.bn1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert score.top1_count == by_hand(net.eval(), files)[0]


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_layout(net, files, tmp_path, channels_last):
    layouts = set()
    hook = net.register_forward_pre_hook(
        lambda module, args: layouts.add(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    evaluate.evaluate(net, open_dataset(tmp_path / "set"), EvalSettings(32, 4, channels_last=channels_last))
    hook.remove()
    assert layouts == {channels_last}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_the_run_or_is_counted_and_named(net, tmp_path, workers):
    files = make_folder(tmp_path, (6, 3, 4), corrupt=[("cat", 4), ("dog2", 0)])
    names = [str(tmp_path / name) for name in ("cat/4.png", "dog2/0.png")]
    dataset = open_dataset(tmp_path)
    with pytest.raises(CorruptImage) as caught:
        evaluate.evaluate(net, dataset, EvalSettings(32, 4, workers=workers))
    assert str(caught.value) == f"{names[0]} cannot be read: it is not an image that Pillow knows"
    score = evaluate.evaluate(net, dataset, EvalSettings(32, 4, workers=workers, skip_corrupt=True))
    whole = [(file, label) for file, label in files if str(file) not in names]
    assert score.skipped == tuple(names)
    assert (score.images, score.announced, score.top1_count) == (11, 13, by_hand(net, whole)[0])
    assert score.top1 == 100 * score.top1_count / 11


def test_nothing_but_corrupt_images_is_no_score(net, tmp_path):
    make_folder(tmp_path, (1, 1, 1), corrupt=[("cat", 0), ("dog2", 0), ("dog10", 0)])
    with pytest.raises(RuntimeError, match=r"none of the 3 images of .* could be read"):
        evaluate.evaluate(net, open_dataset(tmp_path), EvalSettings(32, 4, skip_corrupt=True))


@pytest.mark.parametrize("label", [3, 1000, -1])
def test_a_label_that_the_network_does_not_have(net, tmp_path, label):
    records = make_records(tmp_path / "a.rec", [(0, encoded(0)), (label, encoded(1))])
    message = rf"a\.rec: record 1 has label {label}, but the network has 3 classes \(0 to 2\): use weights"
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(net, open_dataset(records), SMALL)


def test_a_network_of_other_classes(files, tmp_path):
    with pytest.raises(UsageError, match=r"the network has 5 classes, .*set has 3: use weights"):
        evaluate.evaluate(classifier(5), open_dataset(tmp_path / "set"), SMALL)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_not_finite(files, tmp_path, value):
    with pytest.raises(RuntimeError, match=r"logits for .*0\.png are not finite: use dtype fp32"):
        evaluate.evaluate(Fixed(0, 1, value), open_dataset(tmp_path / "set"), SMALL)


@pytest.mark.parametrize("shape", [(), (3, 2, 2), (0,)])
def test_a_network_that_is_no_classifier(files, tmp_path, shape):
    class Features(nn.Module):
        def forward(self, x):
            return x.new_zeros(len(x), *shape)

    with pytest.raises(UsageError, match="a classifier outputs logits"):
        evaluate.evaluate(Features(), open_dataset(tmp_path / "set"), SMALL)


def stream(count, announced, broken=False):
    """A stream of ``count`` images of class 0."""

    class Reader:
        num_samples = announced

        def __iter__(self):
            for i in range(count):
                yield Image.new("RGB", (32, 32), (i, i, i)), 0
            if broken:
                raise OSError("the shard is cut")

    return Stream("hfids/x", Reader())


def test_streams():
    net = Fixed(1, 0)
    score = evaluate.evaluate(net, stream(5, 5), SMALL)
    assert (score.top1_count, score.images, score.announced) == (5, 5, 5)
    score = evaluate.evaluate(net, stream(5, 0), SMALL)
    assert (score.images, score.announced) == (5, None)
    assert "size not announced" in text_table(evaluate.table(score))
    for count in (4, 6):
        with pytest.raises(RuntimeError, match=f"announces 5 images, but {count} were scored and 0 skipped"):
            evaluate.evaluate(net, stream(count, 5), SMALL)
    for announced in (6, 0):
        with pytest.raises(CorruptImage, match="an image of hfids/x cannot be read: the shard is cut"):
            evaluate.evaluate(net, stream(5, announced, broken=True), EvalSettings(32, 4, skip_corrupt=True))


def score_twice(path, skip_corrupt):
    """With the same weights in every process, and with others."""
    with processes.joined("cpu"):
        rank, dataset = processes.rank(), open_dataset(path)
        settings = EvalSettings(32, 4, skip_corrupt=skip_corrupt)
        try:
            score = evaluate.evaluate(classifier(), dataset, settings)
            print(json.dumps(score.to_dict() | {"rank": rank}), flush=True)
            evaluate.evaluate(classifier(seed=rank), dataset, settings)
        except (ValueError, RuntimeError) as error:
            sys.exit(str(error))


def two_processes(function, *arguments):
    """Their ``(standard output, standard error, exit code)``, each at most a minute later."""
    running = ranks(function, *arguments)
    try:
        codes = [process.wait(60) for process in running]
        return [(*process.output(), code) for process, code in zip(running, codes)]
    finally:
        for process in running:
            process.kill()


def test_two_processes_of_the_same_weights_count_what_one_does(net, tmp_path):
    files = make_folder(tmp_path, (6, 3, 4), corrupt=[("cat", 1), ("cat", 2), ("dog10", 2)])
    expected = evaluate.evaluate(net, open_dataset(tmp_path), EvalSettings(32, 4, skip_corrupt=True))
    for rank, (out, error, code) in enumerate(two_processes(score_twice, tmp_path, True)):
        figures = json.loads(out)
        assert figures["rank"] == rank
        assert (figures["images"], figures["announced"], figures["processes"]) == (10, len(files), 2)
        assert (figures["top1_count"], figures["top5_count"]) == (expected.top1_count, expected.top5_count)
        assert figures["skipped_files"] == list(expected.skipped)
        assert figures["k"] == 3
        assert (code, "the processes have different weights" in error) == (1, True)  # the second time


def test_an_error_in_one_process_ends_the_other_too(tmp_path):
    make_folder(tmp_path, (6, 3, 4), corrupt=[("cat", 1)])  # the second image is the second process's
    (_, first, code), (_, second, other) = two_processes(score_twice, tmp_path, False)
    assert (code, other) == (1, 1)
    assert "another process has ended early: its own message says why" in first
    assert second.strip().endswith("1.png cannot be read: it is not an image that Pillow knows")


def test_each_process_has_its_share(monkeypatch, tmp_path):
    make_folder(tmp_path, (6, 3, 4))
    dataset = open_dataset(tmp_path)
    monkeypatch.setattr(processes, "world_size", lambda: 3)
    names = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        transform = preprocessing(nn.Flatten(), 32).transform()
        share = [name for *_, some, _ in evaluate.loading.batches(dataset, transform, 2) for name in some]
        assert len(share) == [5, 4, 4][rank]
        names += share
    assert sorted(names) == sorted(dataset.filename(i) for i in range(13))


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with (
        pytest.raises(UsageError, match="no GPU number 2, PyTorch sees 2: use device cpu, or start fewer processes"),
        processes.joined("cuda"),
    ):
        pass


def test_alone_there_is_nothing_to_join():
    with processes.joined("cpu") as device:
        assert device == "cpu"
    assert (processes.rank(), processes.world_size(), processes.gather("mine")) == (0, 1, ["mine"])


def figures_of(net, dataset):
    score = evaluate.evaluate(net, dataset, SMALL)
    return {
        "model": "m",
        "alpha": 0.25,
        "checkpoint": "",
        "data": "d",
        "split": None,
        "param_count": 1,
        **score.to_dict(),
        **env.facts(),
    }


def test_what_a_score_says_about_itself(net, files, tmp_path):
    figures = figures_of(net, open_dataset(tmp_path / "set"))
    json.dumps(figures)
    assert set(evaluate.COLUMNS) <= figures.keys()
    assert figures["top1"] + figures["top1_err"] == pytest.approx(100)
    assert figures["images_per_s"] == figures["images"] / figures["seconds"]
    assert (figures["img_size"], figures["interpolation"], figures["crop_pct"]) == ((32, 32), "bicubic", 0.875)
    assert figures["mean"] == tuple(mean / 255 for mean in (124, 117, 104))
    line = evaluate.conditions(figures)
    for word in ("32x32 pixels, bicubic, crop 0.875", "fp32, channels_last, batch 4; processes: 1", env.facts()["cpu"]):
        assert word in line


def test_the_table(net, files, tmp_path):
    score = evaluate.evaluate(net, open_dataset(tmp_path / "set"), SMALL)
    rows = {name: cells for name, *cells in evaluate.table(score)}
    assert rows["top-1"] == [f"{100 * score.top1_count / 13:.3f} %", str(score.top1_count)]
    assert rows["top-3"] == ["100.000 %", "13"]
    assert (rows["images"], rows["skipped"]) == (["", "13"], ["", "0"])


def test_results_are_appended(net, files, tmp_path):
    path = tmp_path / "new" / "results.csv"
    figures = figures_of(net, open_dataset(tmp_path / "set"))
    for i in range(3):
        _csv.open_table(path, evaluate.COLUMNS)
        _csv.append_row(path, evaluate.COLUMNS, figures | {"model": f"m,{i}", "top1": 100 / 3})
    header, *rows = path.read_text().splitlines()
    assert header == ",".join(evaluate.COLUMNS)
    assert [row.split(",0.25,,d,,33.3333,")[0] for row in rows] == ['"m,0"', '"m,1"', '"m,2"']
    assert ",32 32,0.875,bicubic,0.486275 0.458824 0.407843," in rows[0]
    with path.open("a") as file:
        file.write("cut by a cra")
    _csv.append_row(path, evaluate.COLUMNS, figures)
    lines = path.read_text().splitlines()
    assert lines[:5] == [header, *rows, "cut by a cra"]
    assert lines[5].startswith("m,0.25,")


def test_results_of_another_version_are_left_alone(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("model,top1\nm,1\n")
    with pytest.raises(UsageError, match="has other columns than this version writes: name another file"):
        _csv.open_table(path, evaluate.COLUMNS)
    assert path.read_text() == "model,top1\nm,1\n"


def test_progress_prints_a_line_per_tenth_off_a_terminal(capsys):
    images = Images("x", [None] * 1000)
    with evaluate.progress(images) as log:
        for seen in range(40, 1001, 40):
            log(seen, seen // 4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("120/1,000 images  top-1 25.00%  ")
    assert lines[-1].startswith("1,000/1,000 images  top-1 25.00%  ")
    assert lines[-1].endswith(" images/s  ETA 0:00:00")


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    console = Console(force_terminal=True, width=100, record=True)
    monkeypatch.setattr("rich._console", console)
    with evaluate.progress(Images("x", [None] * 8)) as log:
        log(8, 2)
    text = console.export_text()
    assert "8/8" in text
    assert "top-1 25.00%" in text


def test_only_the_first_process_shows_progress(monkeypatch, capsys):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    with evaluate.progress(Images("x", [None] * 7)) as log:
        log(4, 1)
    assert capsys.readouterr().out.startswith("4/4 images")
    monkeypatch.setattr(processes, "rank", lambda: 1)
    with evaluate.progress(Images("x", [None] * 7)) as log:
        assert log is None


def verb(capsys, *arguments):
    """Exit code, standard output and standard error of ``octaveconv eval``."""
    code = cli.main(["eval", "--size", "32", "--device", "cpu", "--workers", "0", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_verb(capsys, tmp_path):
    make_folder(tmp_path / "set" / "val", (3, 2, 2), corrupt=[("cat", 1)])
    table, report = tmp_path / "results.csv", tmp_path / "report.json"
    arguments = ("oct_resnetv2_26", "--alpha", 0.5, "--data", tmp_path / "set", "--results-file", table)
    code, _, error = verb(capsys, *arguments)
    assert (code, len(error.splitlines())) == (1, 1)
    assert error.endswith(
        "1.png cannot be read: it is not an image that Pillow knows: repair or delete it, or skip such images with "
        "--skip-corrupt\n"
    )
    matrix = tmp_path / "confusion.csv"
    code, out, _ = verb(capsys, *arguments, "--skip-corrupt", "--json", report, "--confusion", matrix)
    assert code == 0
    assert [line.split(",")[0] for line in matrix.read_text().splitlines()] == ["class", "cat", "dog2", "dog10"]
    assert sum(int(cell) for line in matrix.read_text().splitlines()[1:] for cell in line.split(",")[1:]) == 6
    assert "most often taken for" in out
    for words in ("random weights, seed 0", "top-3", "32x32 pixels, bicubic, crop 0.875", "1.png"):
        assert words in out
    assert ["skipped", "1"] in [line.split() for line in out.splitlines()]
    figures = json.loads(report.read_text())
    assert (figures["model"], figures["alpha"], figures["images"], figures["skipped"]) == ("oct_resnetv2_26", 0.5, 6, 1)
    assert len(table.read_text().splitlines()) == 2


def test_the_verb_in_two_processes(files, tmp_path):
    """Started as torchrun starts them."""
    argv = ["eval", "oct_mobilenetv1_075", "--size", "32", "--workers", "0", "--data", str(tmp_path / "set")]
    assert cli.main([*argv, "--json", str(tmp_path / "1.json")]) == 0
    for _, error, code in two_processes(cli.main, [*argv, "--json", str(tmp_path / "2.json")]):
        assert code == 0, error
    figures = [json.loads((tmp_path / f"{count}.json").read_text()) for count in (1, 2)]
    assert [run["processes"] for run in figures] == [1, 2]
    assert figures[0]["images"] == figures[1]["images"] == len(files)
    assert figures[0]["top1_count"] == figures[1]["top1_count"]


def test_the_verb_takes_the_weights_and_the_classes_of_a_file(capsys, tmp_path):
    make_folder(tmp_path / "set")
    net = timm.create_model("oct_resnetv2_26", num_classes=3)
    nn.init.constant_(net.fc.bias[1:2].detach(), 1e6)  # all are class 1
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    arguments = ("oct_resnetv2_26", "--checkpoint", tmp_path / "weights.pth")
    code, out, _ = verb(capsys, *arguments, "--data", tmp_path / "set")
    assert code == 0
    assert ["top-1", "44.444", "%", "4"] in [line.split() for line in out.splitlines()]
    (tmp_path / "set" / "dog2").rename(tmp_path / "dog2")
    code, _, error = verb(capsys, *arguments, "--data", tmp_path / "set")
    assert (code, len(error.splitlines())) == (2, 1)
    assert "the network has 3 classes, " in error
