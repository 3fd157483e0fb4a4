"""Random networks in the forms in which other projects write theirs, for tests of octavify."""

import random
import warnings

import timm
import torch
import torchvision
from foreign_layers import (
    Asked,
    Auxiliary,
    Branching,
    Called,
    Each,
    Equalized,
    Gated,
    Joined,
    Levels,
    Mirrored,
    Padded,
    PixelGate,
    Pixels,
    Resized,
    SameConv,
    Shuffle,
    Squeeze,
    StaticSameConv,
    Styled,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize

WIDTHS = (4, 6, 8, 12)
MOST = 64  # channels
SIZES = (24, 20), (23, 17)  # of the example, and of other images


def mirrored(conv):
    parametrize.register_parametrization(conv, "weight", Mirrored())
    return conv


def older(norm):
    def normed(conv):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(conv)

    return normed


NORMED = (
    parametrizations.weight_norm, parametrizations.spectral_norm, mirrored, older(nn.utils.weight_norm),
    older(nn.utils.spectral_norm),
)  # fmt: skip
PADS = {"constant": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d,
        "circular": nn.CircularPad2d}  # fmt: skip
STRIDED = (  # kernel, stride, padding
    (3, 2, 1), (3, 2, 0), (4, 2, 1), (5, 2, 2), (2, 2, 0), (6, 2, 2), (3, 3, 0), (5, 3, 1), (5, 3, 2), (4, 4, 0),
    (7, 4, 3), (3, (1, 2), 1), (3, (2, 1), 1), ((3, 4), (1, 2), 1), ((1, 3), (1, 3), 0), (1, 2, 0), (3, 3, 1),
)  # fmt: skip
EVEN = ((2, 1, 0), (2, 1, 1), (4, 1, 1), (4, 1, 2), ((2, 3), 1, (0, 1)), (3, 1, 0), (5, 1, 1))
TRANSPOSED = ((2, 2, 0), (4, 2, 1), (3, 2, 1, 1), (3, 2, 1, 0), (3, 1, 1), (3, 3, 0), (5, 2, 2, 1), (4, 1, 0),
              (2, (2, 1), 0), (3, 2, 0))  # fmt: skip
ONLY_FLAT = {(2, 2, 0), (3, 3, 0)}  # of these, each output pixel sees one input pixel


class Forms:
    """Makes a layer in the form of each method; ``draw`` chooses. If ``flat``, constant maps stay constant."""

    def __init__(self, draw, flat):
        self.draw, self.flat = draw, flat

    def mode(self):
        return self.draw.choice(("replicate", "reflect", "circular")) if self.flat else "zeros"

    def plain(self, c, out=None, kernel=3, stride=1, padding=None, kind=nn.Conv2d, **more):
        out, pad = out or self.draw.choice(WIDTHS), kernel // 2 if padding is None else padding
        return kind(c, out, kernel, stride, pad, padding_mode=self.mode() if pad else "zeros", **more)

    def convolution(self, c):
        out = self.draw.choice(WIDTHS)
        groups = self.draw.choice([g for g in (1, 1, 2) if c % g == 0])
        return self.plain(c, out, self.draw.choice((1, 3, 5)), groups=groups, bias=self.draw.random() < 0.7)

    def depthwise(self, c):
        return nn.Sequential(self.plain(c, c, groups=c), self.plain(c, kernel=1))

    def padded(self, c):
        mode = self.draw.choice(("reflect", "replicate", "circular") if self.flat else (*PADS, "constant"))
        kernel, stride = self.draw.choice(((3, 1), (3, 1), (5, 1), (3, 2), (4, 2), (2, 1), (4, 1)))
        sides = self.draw.choice(((0, 1, 0, 1), (kernel // 2,) * 4, (kernel - 1, 0, kernel - 1, 0), (1, 2, 0, 0)))
        conv = nn.Conv2d(c, self.draw.choice(WIDTHS), kernel, stride)
        return nn.Sequential(PADS[mode](sides), conv) if self.draw.random() < 0.5 else Padded(conv, sides, mode)

    def strided(self, c):
        return self.plain(c, None, *self.draw.choice(STRIDED))

    def even(self, c):
        if self.draw.random() < 0.5:
            return self.plain(c, None, self.draw.choice((2, 4)), 1, "same")
        return self.plain(c, None, *self.draw.choice(EVEN))

    def transposed(self, c):
        shapes = [each for each in TRANSPOSED if not self.flat or each in ONLY_FLAT]
        made = nn.ConvTranspose2d(c, self.draw.choice(WIDTHS), *self.draw.choice(shapes))
        if self.flat:
            made.weight.data = made.weight.data.mean((2, 3), keepdim=True).expand_as(made.weight).contiguous()
        return made if self.flat or self.draw.random() < 0.7 else parametrizations.weight_norm(made)

    def computed(self, c):
        kernel, stride, padding = self.draw.choice(((3, 1, 1), (1, 1, 0), (4, 2, 1), (3, 2, 1)))
        return self.draw.choice(NORMED)(self.plain(c, None, kernel, stride, padding))

    def called(self, c):
        conv = self.plain(c, padding=0 if self.flat else 1)
        return Called(conv) if self.flat or self.draw.random() < 0.5 else Equalized(c, self.draw.choice(WIDTHS))

    def own_forward(self, c):
        kind, out = self.draw.choice((SameConv, StaticSameConv, timm.layers.Conv2dSame)), self.draw.choice(WIDTHS)
        kernel = 1 if self.flat and kind is not StaticSameConv else 3
        if self.flat and kind is StaticSameConv:
            return Padded(nn.Conv2d(c, out, 2), (0, 1, 0, 1), "replicate")
        return kind(c, out, kernel, self.draw.choice((1, 1, 2)))

    def standardized(self, c):
        return timm.layers.ScaledStdConv2d(c, self.draw.choice(WIDTHS), 1 if self.flat else 3)

    def norm(self, c):
        groups = self.draw.choice([g for g in (1, 2, c) if c % g == 0])
        kinds = (
            lambda: nn.BatchNorm2d(c), lambda: nn.SyncBatchNorm(c), lambda: nn.GroupNorm(groups, c, 0.5),
            lambda: timm.layers.LayerNorm2d(c, 0.5), lambda: torchvision.models.convnext.LayerNorm2d(c, 0.5),
            lambda: nn.InstanceNorm2d(c, 0.5, affine=True), lambda: timm.layers.BatchNormAct2d(c),
            lambda: timm.layers.grn.GlobalResponseNorm(c, channels_last=False), lambda: nn.BatchNorm2d(c, affine=False),
            lambda: timm.layers.FrozenBatchNormAct2d(c), lambda: nn.InstanceNorm2d(c, 0.5),
            lambda: torchvision.ops.FrozenBatchNorm2d(c),
        )  # fmt: skip
        return self.draw.choice(kinds)()

    def activation(self, c):
        kinds = (
            nn.PReLU, lambda: nn.PReLU(c), lambda: nn.LeakyReLU(0.2, inplace=True), nn.SiLU, nn.Softplus,
            lambda: nn.Dropout2d(0.3), lambda: nn.ReLU(inplace=True), lambda: timm.layers.DropPath(0.3),
        )  # fmt: skip
        return self.draw.choice(kinds)()

    def gate(self, c):
        kinds = [lambda: Squeeze(c, linear=True), lambda: Squeeze(c, linear=False),
                 lambda: PixelGate(lambda i, o: self.plain(i, o)), Styled]  # fmt: skip
        return self.draw.choice(kinds + [Gated] * (c % 2 == 0))()

    def shuffle(self, c):
        groups = self.draw.choice([g for g in (1, 2, 3) if c % g == 0])
        return self.draw.choice((Shuffle(groups), nn.ChannelShuffle(groups), nn.PixelUnshuffle(2), nn.PixelShuffle(2)))

    def resize(self, c):
        pad = self.draw.choice((0, 1))
        return self.draw.choice((
            nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.MaxPool2d(3, 2, pad),
            nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), nn.MaxPool2d(2, ceil_mode=True),
            nn.AvgPool2d(3, 1, pad, count_include_pad=False),
        ))  # fmt: skip

    def other(self, c):
        return self.draw.choice((Pixels(c), Asked(c), Auxiliary(self.plain, c)))

    def block(self, c):
        body = [self.layer(c)]
        for _ in range(self.draw.choice((1, 2))):
            body += [self.norm(c), self.activation(c), self.plain(c, c)]
        return self.draw.choice((Each(*body[1:]), Branching(Each(*body[1:])), nn.Sequential(*body[1:])))

    def layer(self, c):
        return getattr(self, self.draw.choice(LAYERS))(c)

    def initialized(self, module):
        """With numbers as after training."""
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            kind = name.rpartition(".")[2]
            if kind == "running_var":
                nn.init.uniform_(value, 0.5, 2)
            elif kind == "running_mean" or (value.dim() == 1 and kind in ("weight", "bias")):
                nn.init.normal_(value, 0.5, 0.5)
        return module


LAYERS = (
    "convolution", "convolution", "depthwise", "padded", "padded", "strided", "strided", "even", "transposed",
    "computed", "computed", "called", "own_forward", "standardized", "norm", "norm", "activation", "gate", "shuffle",
    "resize", "other", "block",
)  # fmt: skip
WAYS = ("cat", "cat", "sum", "in place", "product", "largest", "stack", "interleave")


class Foreign(nn.Module):
    """Steps in a random order, each on some of the last values.

    Attributes:
        images: inputs of the size of an example, and of another size.
        flat: whether constant images make constant maps.
        names: the forms that it has.
    """

    def __init__(self, seed):
        super().__init__()
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.flat = self.draw.random() < 0.5
        self.forms = Forms(self.draw, self.flat)
        self.layers, self.steps, self.names = nn.ModuleList(), [], []
        count = self.draw.choice((1, 1, 1, 2))
        pixels = [(1, 1) if self.flat else size for size in SIZES]
        self.images = [
            tuple(torch.randn(2, 3, *one, dtype=torch.float64).expand(2, 3, *size).contiguous() for _ in range(count))
            for one, size in zip(pixels, SIZES)
        ]
        values = [[images[i] for images in self.images] for i in range(count)]
        for i in range(count):
            self.add("stem", self.forms.plain(3, 8), [i], values)
        while len(self.steps) < count + 7 and len(self.layers) < 30:
            self.extend(values)
        self.outputs = range(len(values))[-self.draw.choice((1, 2, 3)) :]
        self.kind = self.draw.choice(("one", "tuple", "list", "dict"))
        self.eval()
        self.forms = None

    def extend(self, values):
        """Add a step on some of the latest values, if it fits them."""
        latest = range(max(0, len(values) - 5), len(values))
        i = self.draw.choice(latest)
        c, like = values[i][0].shape[1], [j for j in latest if sizes(values[j]) == sizes(values[i])]
        kind = self.draw.choice(("layer",) * 5 + ("join", "join", "levels", "resized"))
        if kind == "layer":
            name = self.draw.choice(LAYERS)
            self.add(name, getattr(self.forms, name)(c), [i], values)
        elif kind == "join":
            way, chosen = self.draw.choice(WAYS), [i, *self.draw.choices(like, k=self.draw.choice((1, 1, 2)))]
            if way != "cat":
                chosen = [j for j in chosen if values[j][0].shape[1] == c] + [i]
            self.add(way, Joined(way), chosen, values)
        elif kind == "levels":
            chosen = self.draw.sample(latest, min(len(latest), 2))
            before = [self.forms.plain(values[j][0].shape[1], 8, 1) for j in chosen]
            self.add(kind, Levels(before, self.forms.plain(8)), [chosen], values)
        else:
            mode = self.draw.choice(("nearest", "bilinear"))
            self.add(kind, Resized(mode), [i, self.draw.choice(latest)], values)

    def add(self, name, layer, chosen, values):
        """Keep a layer and the numbers of the values that it takes, if it runs on them at both sizes."""
        layer = self.forms.initialized(layer).double().eval()
        try:
            with torch.no_grad():
                made = [called(layer, chosen, [value[k] * 1 for value in values]) for k in (0, 1)]
        except (RuntimeError, ValueError, AssertionError):  # these sizes do not fit it
            return
        made = [each if isinstance(each, list) else [each] for each in made]
        if any(
            y.shape[1] > MOST or not y.isfinite().all() or y.shape[2:].numel() > 3000 for each in made for y in each
        ):
            return
        self.layers.append(layer)
        self.steps.append(chosen)
        self.names.append(name)
        values += [list(pair) for pair in zip(*made)]

    def forward(self, *images):
        values = list(images)
        for layer, chosen in zip(self.layers, self.steps):
            made = called(layer, chosen, values)
            values += made if isinstance(made, list) else [made]
        found = [values[i] for i in self.outputs]
        if self.kind == "one":
            return found[-1]
        return found if self.kind == "list" else tuple(found) if self.kind == "tuple" else dict(enumerate(found))


def called(layer, chosen, values):
    """What a layer makes of the chosen values; a list of numbers is one argument."""
    return layer(*([values[j] for j in i] if isinstance(i, list) else values[i] for i in chosen))


def sizes(value):
    return [tensor.shape[2:] for tensor in value]
