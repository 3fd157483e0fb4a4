"""Files of deployed networks: what is saved comes back to the bit, and nothing in a file can do harm."""

import copy
import pickle
import subprocess
import sys
from collections import Counter, namedtuple

import pytest
import torch
from deployed_files import SHAPES, at, everything, fate, mutated, put_together, small_files, taken_apart
from graphs import GRAPHS, Net, captured_graph, conv
from networks import image
from safetensors.torch import load, save
from torch import nn
from torch.utils import _pytree as pytree

import octaveconv as oc
from octaveconv.deploy import sizes
from octaveconv.deploy.cuda.engine import CudaNetwork
from octaveconv.deploy.fallback import Fallback
from octaveconv.deploy.native import file, geometry, tune
from octaveconv.deploy.native.engine import NativeNetwork
from octaveconv.errors import UsageError

pytestmark = pytest.mark.usefixtures("quickly")


def assert_alike(one, other, *inputs):
    """The same answers, to the bit, in the same containers."""
    for x in inputs:
        (expected, spec), (got, other_spec) = pytree.tree_flatten(one(x)), pytree.tree_flatten(other(x))
        assert other_spec == spec
        assert all(map(torch.equal, got, expected))


def again(deployed, tmp_path):
    """The network, saved and loaded."""
    deployed.save(tmp_path / "net.octave")
    return oc.load_deployed(tmp_path / "net.octave")


@pytest.fixture(scope="module")
def files():
    """Two files that hold everything, taken apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "SECONDS", 0)
        return [taken_apart(data) for data in small_files()]


# round trips


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kind_of_layer_comes_back(name, dtype, tmp_path, captured_as):
    model, captures = captured_graph(name)
    captured_as(captures)
    deployed = NativeNetwork(copy.deepcopy(model).to(dtype), image(1, 8, 12, 12).to(dtype))
    loaded = again(deployed, tmp_path)
    assert_alike(deployed, loaded, *(image(*s).to(dtype) for s in ((1, 8, 12, 12), (3, 8, 9, 7), (0, 8, 6, 5))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_block_comes_back(dtype, tmp_path, blocks, captured_as):
    model, captures = blocks
    captured_as(captures)
    deployed = oc.deploy(copy.deepcopy(model).to(dtype), image(1, 3, 64, 64).to(dtype), engine="native")
    loaded = again(deployed, tmp_path)
    assert loaded.engine == "native"
    assert_alike(deployed, loaded, *(image(*s).to(dtype) for s in ((1, 3, 64, 64), (9, 3, 35, 42))))
    assert again(loaded, tmp_path).to_bytes() == loaded.to_bytes() == deployed.to_bytes()


def test_all_forms_are_saved_and_equal_weights_once(tmp_path):
    deployed = NativeNetwork(GRAPHS["pooling of other kinds"].eval(), image(1, 8, 12, 12))
    inputs = image(2, 8, 12, 9), image(1, 8, 1, 7), image(1, 8, 5, 1)
    one = len(deployed.to_bytes())
    assert_alike(deployed, loaded := again(deployed, tmp_path), inputs[0])
    message = (
        r"cannot take \[1, 8, 1, 7\]: .*net\.octave holds the network for \[N, 8, H, W\] where the layers' sizes agree"
        r"\. For another size, call the deployed network with it before save, or deploy the model with an example"
    )
    with pytest.raises(ValueError, match=message):
        loaded(inputs[1])
    for x in inputs:
        deployed(x)
    assert_alike(deployed, again(deployed, tmp_path), *inputs)
    names = load((tmp_path / "net.octave").read_bytes())
    weights = sum(tensor.nbytes for tensor in names.values())
    assert weights == sum(p.nbytes for p in (deployed._captures.model.a).parameters())
    assert len(deployed.to_bytes()) > one


def test_the_sizes_that_a_file_covers_are_named(tmp_path):
    model = Net(lambda m, x: m.a(x) if x.shape[0] == 1 else m.a(x) * 2, a=conv(8, 4, 3, padding=1)).eval()
    deployed = NativeNetwork(model, image(2, 8, 9, 9))
    loaded = again(deployed, tmp_path)
    assert_alike(deployed, loaded, image(2, 8, 5, 6), image(3, 8, 9, 9))
    with pytest.raises(ValueError, match=r"cannot take \[1, 8, 9, 9\]: .* holds the network for \[2<=N, 8, H, W\]\. "):
        loaded(image(1, 8, 9, 9))
    with pytest.raises(ValueError, match=r"cannot take \[2, 7, 9, 9\]"):
        loaded(image(2, 7, 9, 9))
    valid = again(NativeNetwork(conv(8, 4, (3, 5)).eval(), image(1, 8, 12, 12)), tmp_path)
    with pytest.raises(ValueError, match=r"holds the network for \[N, 8, 3<=H, 5<=W\] where the layers' sizes agree"):
        valid(image(1, 8, 2, 16))
    with pytest.raises(ValueError, match=r"takes torch\.float32 images"):
        valid(image(1, 8, 16, 16).double())


@pytest.mark.parametrize("height", [12, 13])
def test_conditions_are_those_of_the_capture(height, tmp_path):
    even = Net(lambda m, x: m.a(x) + m.b(x), a=conv(8, 9, 3, stride=2, padding=1), b=conv(8, 9, 2, stride=2)).eval()
    deployed = NativeNetwork(even, image(1, 8, 12, 14))
    loaded = again(deployed, tmp_path)
    if height == 12:
        assert_alike(deployed, loaded, image(2, 8, height, 20))
    for network in (deployed, loaded) if height == 13 else ():
        with pytest.raises(ValueError, match=r"cannot take \[2, 8, 13, 20\]"):
            network(image(2, 8, height, 20))


def test_a_fixed_size_stays_fixed(tmp_path):
    fixed = Net(lambda m, x: m.fc(m.a(x).mean((2, 3))) + float(x.shape[2]), a=conv(8, 24, 1), fc=nn.Linear(24, 7))
    deployed = NativeNetwork(fixed.eval(), image(2, 8, 9, 9))
    deployed(image(2, 8, 7, 9))
    loaded = again(deployed, tmp_path)
    assert_alike(deployed, loaded, image(2, 8, 9, 9), image(2, 8, 7, 9))


def test_images_that_leave_no_pixels_are_refused(tmp_path):
    deployed = NativeNetwork(GRAPHS["average pooling that drops the edge"].eval(), image(1, 8, 12, 12))
    with pytest.raises(ValueError, match=r"cannot take \[1, 8, 1, 7\]: .*net\.octave: a map would have no pixels"):
        again(deployed, tmp_path)(image(1, 8, 1, 7))


def test_what_needs_more_memory_than_there_is_is_refused(tmp_path, monkeypatch):
    loaded = again(NativeNetwork(GRAPHS["constants"].eval(), image(1, 8, 12, 12)), tmp_path)
    monkeypatch.setattr(geometry, "MEMORY", 1e9)
    loaded(image(1, 8, 20, 30))
    with pytest.raises(ValueError, match=r"net\.octave: it needs 6 GB of memory, more than this machine has"):
        loaded(torch.empty(1, 8, 2000, 7000, device="cpu").expand(2, 8, 2000, 7000))


Pair = namedtuple("Pair", "a b")


def test_outputs_in_other_containers_cannot_be_saved(tmp_path):
    model = Net(lambda m, x: Pair(m.a(x), x), a=conv(8, 4, 1)).eval()
    deployed = NativeNetwork(model, image(1, 8, 9, 9))
    with pytest.raises(UsageError, match="an output that is a Pair: return tensors in dicts, lists or tuples"):
        deployed.save(tmp_path / "net.octave")
    assert not list(tmp_path.iterdir())


def test_an_unknown_size_cannot_be_saved():
    import sympy

    symbol = sympy.Symbol("s")
    with pytest.raises(UsageError, match=r"a file cannot hold the size sin\(s\)"):
        sizes.written(sympy.sin(symbol), {symbol: "h"})
    assert sizes.written(symbol**2 + 3 * symbol, {symbol: "h"}) == ["+", ["*", "h", "h"], ["*", 3, "h"]]


# copies


def test_deep_copies_and_pickles(tmp_path):
    deployed = NativeNetwork(GRAPHS["a dictionary"].eval(), image(1, 8, 12, 12))
    loaded = again(deployed, tmp_path)
    for network in (deployed, loaded):
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), copy.copy(network)):
            assert_alike(network, twin, image(2, 8, 9, 7))
    assert copy.deepcopy(deployed.train()).training
    assert not copy.deepcopy(deployed.eval()).training
    pooling = NativeNetwork(GRAPHS["pooling of other kinds"].eval(), image(1, 8, 12, 12))
    assert_alike(pooling, copy.deepcopy(pooling), image(1, 8, 1, 7))  # a size that is new to both
    with pytest.raises(ValueError, match="the pickled network holds the network for"):
        pickle.loads(pickle.dumps(loaded))(image(1, 7, 9, 9))


def test_the_fallback_can_be_copied_and_says_how_it_can_be_saved(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph: graph)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2)).eval()
    deployed = oc.deploy(model, image(1, 3, 8, 8))
    assert deployed.engine == "inductor"
    message = r"this one runs with inductor \(not the native engine: .*transpose.*\): write it with octaveconv\.export"
    with pytest.raises(UsageError, match=message):
        deployed.save("net.octave")
    for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert (twin.engine, twin.reason) == (deployed.engine, deployed.reason)
        assert_alike(deployed, twin, image(1, 3, 8, 8), image(3, 3, 5, 6))
    eager = Fallback(Net(lambda m, x: x * (2 if x.sum() > 0 else 1)), image(1, 3, 8, 8))
    assert eager.engine == "eager"
    assert_alike(eager, copy.deepcopy(eager), image(2, 3, 9, 7))


def test_the_cuda_engine_refuses():
    with pytest.raises(UsageError, match="deploy the model on the CPU and save that"):
        CudaNetwork.save(None, "net.octave")
    network = CudaNetwork.__new__(CudaNetwork)
    nn.Module.__init__(network)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="deploy the model again instead"):
            copied(network)


ALONE = """
import sys
import torch
import octaveconv as oc
loaded = oc.load_deployed(sys.argv[1])
torch.save(loaded(torch.linspace(-1, 1, 3 * 9 * 8).view(1, 3, 9, 8)), sys.argv[2])
print(*sorted({name.split(".")[0] for name in sys.modules} & {"sympy", "timm"}))
print(*sorted({"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes"} & set(sys.modules)))
"""


def test_loading_captures_nothing(tmp_path, files):
    (tmp_path / "net.octave").write_bytes(put_together(*files[0]))
    paths = [str(tmp_path / "net.octave"), str(tmp_path / "answer.pt")]
    done = subprocess.run([sys.executable, "-c", ALONE, *paths], capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"
    answer = torch.load(paths[1])
    assert answer["logits"].shape == (1, 5)
    assert answer["maps"][0].isfinite().all()


# damaged files


def refuses(data, message=" "):
    with pytest.raises(ValueError, match=message) as caught:
        file.loads(data, "net.octave")
    assert str(caught.value).startswith("net.octave ")


def test_damage_is_found_wherever_it_is(files):
    data = put_together(*files[1])
    assert fate(data, SHAPES) == "run"
    for i in range(0, len(data), 97):
        broken = bytearray(data)
        broken[i] ^= 1 << i % 8
        refuses(bytes(broken))
    for length in (*range(12), len(data) // 2, len(data) - 1):
        refuses(data[:length], "is damaged")
    refuses(data + b"\0", "is damaged: its checksum is not that of its content")


def test_what_is_no_file(tmp_path, files):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        oc.load_deployed(tmp_path / "absent")
    with pytest.raises(ValueError, match="is not a file"):
        oc.load_deployed(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty is damaged"):
        oc.load_deployed(tmp_path / "empty")
    refuses(save({"fc.weight": torch.ones(2)}, {"format": "pt"}), r"is not a file that save\(\) of a deployed network")
    header, record, tensors = files[0]
    newer = put_together(header, record | {"version": 2, "octaveconv": "9.1", "more": 1}, tensors)
    refuses(newer, r"was written by octaveconv 9\.1: install that version, or a newer one")


# hostile files


LAYER = ("forms", 0, "network", "layers")
HOSTILE = {
    "no dtype": (("dtype",), "float16", "there is no such dtype"),
    "another dtype": (("dtype",), "bfloat16", "'relu.weight' is torch.float32"),
    "no forms": (("forms",), [], "it has no forms, or too many"),
    "many forms": (("forms",), [None] * 65, "it has no forms, or too many"),
    "a field too few": (("forms", 0), {}, "there should be an object of input, alone"),
    "a name that is none": (("forms", 0, "input", 2), "q", "a size of its input has an unknown name"),
    "a fixed size below zero": (("forms", 0, "input", 2), -1, "there should be a number from 0"),
    "a range of nothing": (("forms", 0, "ranges"), {"c": [1, 2]}, "a range belongs to no size of its input"),
    "true for a number": (("forms", 0, "input", 1), True, "there should be a number"),
    "an unknown operation": (("forms", 0, "conditions", 0), ["eval", "h", "w"], "is not an expression of n, h, w"),
    "a long expression": (("forms", 0, "conditions", 0), ["+", *["h"] * 501], "an expression is too long"),
    "outputs in no container": (("forms", 0, "output"), {"set": [0, 1, 2]}, "an unknown container"),
    "outputs in another order": (("forms", 0, "output"), {"list": [1, 0, 2]}, "arranged in another order"),
    "an output too few": (("forms", 0, "network", "outputs", 2), None, "there should be a list"),
    "no such map": ((*LAYER, 0, "outputs", 0, "full"), 99, "there should be a number from 0 to"),
    "a negative map": ((*LAYER, 0, "outputs", 0, "full"), -1, "there should be a number from 0 to"),
    "too many channels are read": ((*LAYER, 0, "sum", "terms", 0, "source", 2), 4, "more channels are read than"),
    "channels from beyond": ((*LAYER, 0, "sum", "terms", 0, "source", 1), 1, "more channels are read than"),
    "what is not written yet": ((*LAYER, 0, "sum", "terms", 0, "source"), [5, 0, 3], "that nothing has written"),
    "another sum of channels": ((*LAYER, 0, "sum", "channels"), 16, "does not fit its layer"),
    "no channels": ((*LAYER, 0, "sum", "channels"), 0, "there should be a number from 1"),
    "groups that do not fit": ((*LAYER, 0, "sum", "terms", 0, "groups"), 3, "does not fit its layer"),
    "no such weight": ((*LAYER, 0, "sum", "terms", 0, "weight"), "fc", "a layer's tensor is missing"),
    "a bias for a weight": ((*LAYER, 0, "sum", "terms", 0, "weight"), "relu.bias", "another number of dimensions"),
    "a stride of zero": ((*LAYER, 0, "sum", "terms", 0, "stride"), [0, 1], "there should be a number from 1"),
    "a negative padding": ((*LAYER, 0, "sum", "terms", 0, "padding"), [1, -1], "there should be a number from 0"),
    "an empty sum": ((*LAYER, 0, "sum", "terms"), [], "a sum is empty"),
    "neither sum nor window": ((*LAYER, 0, "sum"), None, "a layer has either a sum or a window"),
    "no such activation": ((*LAYER, 0, "outputs", 0, "activation"), "exec", "there is no such activation"),
    "no number for a bound": ((*LAYER, 0, "outputs", 0, "low"), "0", "there should be a number"),
    "kept nowhere": ((*LAYER, 0, "outputs", 0), {"full": None, "pooled": None}, "an output is kept nowhere"),
    "the input is written": ((*LAYER, 0, "outputs", 0, "full"), 0, "another number of channels"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_layers_are_refused(what, files):
    path, value, message = HOSTILE[what]
    header, record, tensors = copy.deepcopy(files[0])
    holder = at(record, path[:-1])
    if isinstance(value, dict) and path[-1] != "output" and value:
        value = holder[path[-1]] | value if isinstance(holder[path[-1]], dict) and path[-1] != "ranges" else value
    holder[path[-1]] = value
    refuses(put_together(header, record, tensors), f"is damaged: .*{message}")


def test_maps_cannot_overlap(files):
    header, record, tensors = copy.deepcopy(files[0])
    maps, layers = (record["forms"][0]["network"][name] for name in ("maps", "layers"))
    parts = [each for each in maps if each["home"] is not None]
    assert len(parts) == 2
    parts[1]["offset"] = 0
    refuses(put_together(header, record, tensors), "a map is written twice")
    parts[1]["offset"] = 19
    refuses(put_together(header, record, tensors), "a map exceeds its home")
    layers.append(layers[0])
    parts[1]["offset"] = 12
    refuses(put_together(header, record, tensors), "a map is written twice")


WRONG_SIZES = {
    "a convolution beyond its map": ("dilation", [1, 9], "layer 'relu': a convolution reads beyond its map"),
    "a stride beyond its map": ("stride", [2, 1], "layer 'relu': a convolution reads beyond its map"),
    "too little padding": ("padding", [1, 0], "layer 'relu': a convolution reads beyond its map"),
    "too much padding": ("padding", [1, 2], "layer 'relu': a convolution makes a larger map than its sum"),
}


@pytest.mark.parametrize("what", WRONG_SIZES)
def test_windows_beyond_their_maps_are_refused_when_the_size_is_known(what, files):
    field, value, message = WRONG_SIZES[what]
    header, record, tensors = copy.deepcopy(files[0])
    at(record, (*LAYER, 0, "sum", "terms", 0))[field] = value
    forms, _ = file.loads(put_together(header, record, tensors), "net.octave")
    with pytest.raises(ValueError, match=f"net.octave is damaged: {message}"):
        forms.of(torch.Size(SHAPES[0]))


def test_outputs_of_another_shape_are_refused(files):
    for i, shape in ((0, ["n", 6]), (0, ["n", 5, 2]), (1, ["n", 9, "h", "w"]), (0, [5]), (0, [3, 5])):
        header, record, tensors = copy.deepcopy(files[0])
        record["forms"][0]["network"]["shapes"][i] = shape
        forms, _ = file.loads(put_together(header, record, tensors), "net.octave")
        with pytest.raises(ValueError, match=r"net\.octave is damaged: an output has another s"):
            forms.of(torch.Size(SHAPES[0]))


@pytest.mark.parametrize(
    "size", [["//", "h", 0], ["*", *["h"] * 400], 2**30, ["+", "h", -12], ["%", "h", ["+", "h", -12]]]
)
def test_sizes_out_of_bounds_are_refused(size, files):
    header, record, tensors = copy.deepcopy(files[0])
    for each in record["forms"][0]["network"]["maps"][1:]:
        each["size"][0] = size
    assert fate(put_together(header, record, tensors), [SHAPES[0]]) == "not run"


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"version":NaN}', "null", '"version"', "1" * 5000, '{"version":1}', "[" * 900 + "]" * 900],
    ids=lambda text: text[:9],
)
def test_hostile_json_is_refused(text, files):
    header, _, tensors = files[0]
    refuses(put_together(header, None, tensors, text), "is damaged")


def test_tensors_must_fill_the_file(files):
    for change in (
        {"shape": [2**31, 2**31, 2**31, 2**31]}, {"shape": [-1]}, {"shape": []}, {"dtype": "I64"}, {"dtype": []},
        {"data_offsets": [0, 2**63]}, {"data_offsets": [-4, 4]}, {"data_offsets": ["0", "4"]}, {"data_offsets": [0]},
    ):  # fmt: skip
        header, record, tensors = copy.deepcopy(files[0])
        next(iter(header.values())).update(change)
        refuses(put_together(header, record, tensors), "is damaged")
    header, record, tensors = files[0]
    refuses(put_together(header, record, tensors + bytes(4)), "it has more bytes than its tensors")
    end = len(tensors)
    more = header | {"more": {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}}
    refuses(put_together(more, record, tensors + bytes(4)), "it has tensors that no layer uses")


@pytest.mark.parametrize("part", range(4))
def test_changed_files_are_refused_or_run(part, files, monkeypatch, threads):
    """`experiments/fuzz.py` changes more, under the sanitizers."""
    threads(1)
    monkeypatch.setattr(geometry, "MEMORY", 2**27)
    fates = Counter(fate(mutated(files[seed % 2], seed), SHAPES) for seed in range(75 * part, 75 * part + 75))
    assert min(fates["refused"], fates["run"]) > 3, fates


def test_changes_reach_every_field(files):
    """Each is used somewhere in the files that are changed."""
    record = files[0][1]
    used = {path[-1] for path in everything(record) if path and at(record, path) not in (None, False, 0, [], {})}
    fields = {path[-1] for path in everything(record) if path and isinstance(path[-1], str)}
    assert fields - used == {"count_padding", "low"}
    assert len(record["forms"]) == 2
