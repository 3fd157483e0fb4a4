"""pretrained=True: the original's files from a server on this machine, converted once and kept in timm's cache."""

import json
import os
import shutil

import mxnet_writer as writer
import pytest
import timm
import torch
from goldens import LIMIT, ORACLE
from http_server import FileServer, Reply
from networks import few_blocks
from oracle.rule import image

import octaveconv.models
from octaveconv.models import PUBLISHED, _published, published
from octaveconv.weights import download

NAME, FILE = "oct_mobilenetv1_075_a375", "others/mobilenet_v1_075_alpha-0.375.params"
GOLDEN = "gluon_mobilenet_v1_075_alpha-0.375"
DATA = writer.golden_file(GOLDEN)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0, 0.0))
    with FileServer({FILE: DATA}) as running:
        monkeypatch.setattr(_published, "_ADDRESS", running.url(""))
        yield running


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def known(monkeypatch, name=NAME, **facts):
    """Publish the file with another digest or size."""
    monkeypatch.setitem(PUBLISHED, name, PUBLISHED[name]._replace(**facts))


def create(**kwargs):
    return timm.create_model(
        NAME, pretrained=True, pretrained_cfg_overlay=dict(url=published(NAME).url), **kwargs
    ).eval()


def left(cache):
    return sorted(name for name in os.listdir(cache) if not name.endswith(".lock"))


CONVERTED = f"{NAME}-mobilenet_v1_075_alpha-0.375.params.safetensors"


def test_success_and_the_second_time(server, cache):
    golden = json.loads((ORACLE / f"{GOLDEN}.json").read_text())
    with torch.no_grad():
        logits = create()(torch.from_numpy(image(golden["input_size"])))[0]
    expected = torch.tensor(golden["logits"])
    assert (logits - expected).abs().max() <= LIMIT * expected.std()
    assert left(cache) == [CONVERTED]
    create()
    assert len(server.requests) == 1


def test_other_heads_inputs_and_features(server, cache):
    full = create()
    assert torch.equal(create(num_classes=10).conv1.weight, full.conv1.weight)
    assert torch.allclose(create(in_chans=1).conv1.weight, full.conv1.weight.sum(1, keepdim=True))
    taps = create(features_only=True)(torch.zeros(1, 3, 64, 64))
    assert [tap.shape[-1] for tap in taps] == [32, 16, 8, 4, 2]
    assert len(server.requests) == 1


def test_an_archive(server, cache, monkeypatch):
    name, file = "oct_resnetv2_26_a250", "ablation/a02_resnet-26_alpha-0.250.tar"
    server.files[file] = writer.golden_tar("symbol_resnetv2-26_alpha-0.25")
    known(monkeypatch, name=name, sha256=None, size=None)  # of the file with the trained weights
    url = server.url(file)
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(url=url))
    arrays = writer.golden_arrays("symbol_resnetv2-26_alpha-0.25")
    assert torch.equal(model.fc.bias, arrays["arg:classifier_bias"])
    assert left(cache) == [f"{name}-a02_resnet-26_alpha-0.250.tar.safetensors"]


def test_resumed_after_a_cut(server, cache):
    server.replies = [Reply(cut=1_000_000)]
    create()
    assert server.ranges[0] is None
    assert server.ranges[1].startswith("bytes=")
    assert left(cache) == [CONVERTED]


def test_resumed_in_the_next_call(server, cache):
    server.usual = Reply(cut=1_000_000)
    with pytest.raises(download.DownloadError, match="the connection was cut after"):
        create()
    server.usual = Reply()
    create()
    assert server.ranges[-1].startswith("bytes=")


def test_wrong_checksum(server, cache, monkeypatch):
    known(monkeypatch, sha256="0" * 64)
    with pytest.raises(download.DownloadError, match=r"has sha256 7395\w+, expected 0000"):
        create()
    assert left(cache) == []


def test_wrong_size(server, cache, monkeypatch):
    known(monkeypatch, size=len(DATA) + 1)
    with pytest.raises(download.DownloadError, match=rf"has {len(DATA):,} bytes, expected {len(DATA) + 1:,}"):
        create()
    assert left(cache) == []


def test_truncated_at_the_source(server, cache):
    server.files[FILE] = DATA[:-1000]  # complete for HTTP, and nobody knows its size
    with pytest.raises(ValueError, match=r"http.* does not have the expected file: .*at byte \d+"):
        create()
    assert left(cache) == []  # so that the next call fetches it anew
    server.files[FILE] = DATA
    create()


def test_another_network_at_the_source(server, cache):
    server.files[FILE] = writer.golden_file("gluon_mobilenet_v2_100_alpha-0.375")
    with pytest.raises(ValueError, match=r"does not have the expected file: .*\d+ arrays left over .*\d+ not filled"):
        create()
    assert left(cache) == []


def test_not_found_names_the_file_its_place_and_the_command(server, cache):
    del server.files[FILE]
    with pytest.raises(download.DownloadError) as error:
        create()
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "404",
        published(NAME).url,
        str(cache / "mobilenet_v1_075_alpha-0.375.params"),
        "checkpoint_path=FILE",
        "--checkpoint FILE",
    ):
        assert part in message


def test_disk_full(server, cache, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    with pytest.raises(download.DownloadError, match=r"the disk is full: needs 11 MB at .*, 2 MB free"):
        create()
    monkeypatch.undo()


def test_a_file_put_there_by_hand(server, cache, monkeypatch):
    cache.mkdir(parents=True)
    by_hand = cache / "mobilenet_v1_075_alpha-0.375.params"
    by_hand.write_bytes(DATA)
    create()
    assert not server.requests
    assert left(cache) == sorted([by_hand.name, CONVERTED])
    os.remove(cache / CONVERTED)
    by_hand.write_bytes(DATA[:-9])
    with pytest.raises(ValueError, match=r"at byte \d+"):
        create()
    known(monkeypatch, sha256="0" * 64)
    with pytest.raises(ValueError, match="expected 0000"):
        create()
    assert left(cache) == [by_hand.name]  # not ours to delete


def test_cache_dir(server, cache, tmp_path):
    create(cache_dir=tmp_path / "elsewhere")
    assert left(tmp_path / "elsewhere") == [CONVERTED]
    assert not cache.exists() or left(cache) == []


def test_a_local_file_as_timm_takes_it(tmp_path):
    (tmp_path / "a.params").write_bytes(DATA)
    overlay = dict(file=str(tmp_path / "a.params"))
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3)
    assert torch.equal(model.conv1.weight, writer.golden_arrays(GOLDEN)["conv1.0.weight"])
    assert "state_dict" not in model.pretrained_cfg


def test_31_checkpoints_are_published():
    assert len(PUBLISHED) == len({record.file for record in PUBLISHED.values()}) == 31
    assert sum(record.sha256 is not None for record in PUBLISHED.values()) == 8
    assert set(timm.list_pretrained("oct_*")) == {f"{name}.fb_in1k" for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name):
    record = PUBLISHED[name]
    small = few_blocks(record.network, tiny=True)
    with torch.device("meta"):
        model = timm.create_model(name, **small)
        timm.create_model(f"{name}.fb_in1k", **small)
    cfg = model.pretrained_cfg
    assert model.alpha == record.alpha
    assert cfg["url"] == f"https://dl.fbaipublicfiles.com/octconv/{record.file}"
    assert f"{record.alpha:g}" in record.file
    assert cfg["license"] == "mit"
    assert (cfg["input_size"], cfg["crop_pct"]) == ((3, 224, 224), 0.875)
    is_symbol = record.file.startswith("ablation/")
    assert cfg["interpolation"] == ("bicubic" if is_symbol else "bilinear")
    pixel = [(124 / 255 - mean) / std for mean, std in zip(cfg["mean"], cfg["std"])]
    assert pixel == pytest.approx([0.0, 7 * 0.0167, 20 * 0.0167] if is_symbol else [0.0056, 0.1350, 0.3570], abs=1e-3)
    assert cfg["notes"] == (f"published: top-1 {record.top1} %, top-5 {record.top5} %",)
    with pytest.raises(ValueError, match=rf"{name} has alpha {record.alpha}, got 0.0625: {record.network} takes"):
        timm.create_model(name, alpha=0.0625)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_those_published(name):
    record, cost = PUBLISHED[name], octaveconv.models.COSTS[PUBLISHED[name].network]
    if record.mparams is None:
        return
    if record.sha256:  # Intel counted after folding the norms
        assert cost["params"] / 1e6 == pytest.approx(record.mparams, abs=0.006)
    else:
        assert f"{cost['params'] / 1e6:.1f}" == str(record.mparams)
    gmacs = cost["macs"][f"{record.alpha:g}"] / 1e9
    assert gmacs < record.gmacs < 1.02 * gmacs  # theirs count biases, pooling and activations too
