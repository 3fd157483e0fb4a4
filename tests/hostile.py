"""Files that are damaged or made to do harm, and what becomes of them."""

import io
import json
import time
import zipfile

import torch
import yaml
from safetensors.torch import save

from octaveconv import doctor
from octaveconv.train import Recipe, RunFolder, read_yaml
from octaveconv.weights import files as weights

NETWORK = dict(layers=[1, 1, 1, 1], width=4, stem="3x3")
CFG = '{"input_size": [3, 16, 16], "crop_pct": 0.9, "mean": [0.5], "num_classes": 2, "label_names": ["cat", "dog"]}'


def state():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 3, 2, 2)).sum().backward()
    optimizer.step()
    about = dict(model="oct_resnetv2_26", alpha="0.5", model_args=json.dumps(NETWORK), pretrained_cfg=CFG)
    recipe = Recipe(model="oct_resnetv2_26", alpha=0.5, model_args=NETWORK, epochs=3, batch_size=8, lr=0.1)
    return dict(
        model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=1, step=0, best=-1.0, loss_sum=0.0,
        recipe=recipe.to_dict(), about=about, streams=2, ema=None, scaler={},
    )  # fmt: skip


def torch_bytes(content, legacy):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def zipped(pickled, checkpoint=None):
    """A checkpoint with this pickle in it, in place of its own."""
    checkpoint = checkpoint or torch_bytes({"w": torch.zeros(2)}, False)
    whole, file = zipfile.ZipFile(io.BytesIO(checkpoint)), io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for record in whole.infolist():
            archive.writestr(record.filename, pickled if record.filename.endswith("data.pkl") else whole.read(record))
    return file.getvalue()


def pickle_of(checkpoint):
    archive = zipfile.ZipFile(io.BytesIO(checkpoint))
    return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def mutated(data, draw):
    """Bytes with one to four places flipped, cut, repeated, removed or overwritten."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(data) + 1), draw.randint(1, 8)
        how = draw.randrange(6)
        if how == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            data[at : at + length] = draw.randbytes(length)
        elif how == 2:
            data[at:at] = data[at : at + length] * draw.randint(1, 50)
        elif how == 3:
            del data[at : at + length]
        elif how == 4:
            other = draw.randrange(len(data) + 1)
            data[at:at] = data[other : other + draw.randint(1, 60)]
        else:
            del data[at if at > len(data) // 2 else len(data) :]
    return bytes(data)


def with_metadata(text):
    """A small file of weights with these metadata, as bytes of JSON."""
    whole = save({"fc.weight": torch.zeros(3, 2)})
    length = int.from_bytes(whole[:8], "little")
    head = b'{"__metadata__":' + text + b"," + whole[9 : 8 + length].lstrip(b"{")
    return len(head).to_bytes(8, "little") + head + whole[8 + length :]


def kinds(folder):
    """Of each kind of file: what its mutations start from, what writes one, and what reads it."""
    whole = state()
    new = torch_bytes(whole, False)
    recipe, metadata = yaml.safe_dump(whole["recipe"]).encode(), json.dumps(whole["about"]).encode()
    run = RunFolder.new(folder, "run")
    run.save({"epoch": 1, "weights": torch.zeros(2)})

    def written(name, make=bytes):
        def write(data):
            path = folder / name
            path.write_bytes(make(data))
            return path

        return write

    def examine(_):
        return [*doctor.examine(run.path)]

    return {
        "legacy": (torch_bytes(whole, True), written("old.pth"), weights.read),
        "zip": (new, written("new.pth"), weights.read),
        "pickle in a zip": (pickle_of(new), written("inner.pth", lambda data: zipped(data, new)), weights.read),
        "recipe": (recipe, written("recipe.yaml"), lambda path: Recipe.of(read_yaml(path))),
        "metadata": (metadata, written("a.safetensors", with_metadata), weights.read),
        "config.yaml": (recipe, written("run/config.yaml"), examine),
        "results.csv": (b"epoch,lr,top1\n1,0.1,50\n2,0.1,60\n", written("run/results.csv"), examine),
        "env.json": (b'{"torch": "2.11", "process": 3, "host": "a"}\n', written("run/env.json"), examine),
    }


def fate(call):
    """What becomes of a file: ``read``, ``refused`` in one line, or what is wrong; and the seconds."""
    start = time.perf_counter()
    try:
        call()
        found = "read"
    except ValueError as error:
        found = "refused" if "\n" not in str(error) and len(str(error)) < 1000 else "no line"
    except Exception as error:
        found = f"raised {type(error).__name__}"
    return found, time.perf_counter() - start


def nested_lists(levels):
    return b"\x80\x02" + b"]" * levels + b"a" * (levels - 1) + b"."


BOMBS = {  # pickles that PyTorch's reader refuses after seconds or hours, or not at all
    "lists": nested_lists(100_000),
    "a key of tuples": b"\x80\x02})" + b"\x85" * 200_000 + b"Ks.",
    "shared tuples": b"\x80\x02})" + b"".join(bytes([113, i, 104, i, 134]) for i in range(60)) + b"Ns.",
    "a call of shared tuples": b"\x80\x02)" + b"".join(bytes([113, i, 104, i, 134]) for i in range(60)) + b")R.",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "filled from inside": b"\x80\x02]q\x00]q\x01ah\x01h\x00a.",
    "marks": b"\x80\x02" + b"(" * 200_000 + b".",
    "a huge integer": b"\x80\x02" + b"\x8a\xff" + b"\x7f" * 255 + b".",
}
