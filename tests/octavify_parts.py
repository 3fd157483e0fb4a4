"""Small networks, each with something that octavify has to do right."""

import timm
import torch
import torch.nn.functional as F
from torch import nn

from octaveconv.octavify.calls import Call, Signature
from octaveconv.octavify.conversion import Options, Source


def prepared(model, x, min_size, stem):
    """The net of a copy of a network."""
    options = Options([], min_size, stem)
    return Source(model, Call(Signature(model), (x,), {}), set(), options).traced().net


def conv(ins, outs, kernel=3, **kwargs):
    """Keeps the size, and constant maps constant."""
    return nn.Conv2d(
        ins, outs, kernel, padding=kernel // 2, padding_mode="replicate" if kernel > 1 else "zeros", **kwargs
    )


def norm(channels):
    made = nn.BatchNorm2d(channels)
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2)
    nn.init.uniform_(made.weight, 0.5, 2)
    nn.init.normal_(made.bias)
    return made


def constant_images(size=32, dtype=torch.float64):
    return torch.randn(2, 3, 1, 1, dtype=dtype).expand(2, 3, size, size).contiguous()


class Part(nn.Module):
    """A stem, 16 channels to 16 channels of octave-able maps by what the subclass does, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 12)
        self.first = conv(12, 16)
        self.last = conv(16, 16)
        self.head = nn.Linear(16, 5)
        self.build()

    def build(self):
        pass

    def forward(self, x):
        x = self.last(self.part(self.first(self.stem(x))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Plain(Part):
    def part(self, x):
        return F.relu(x, inplace=True)


class Residual(Part):
    def build(self):
        self.bn0, self.conv1, self.bn1, self.act = norm(16), conv(16, 16), norm(16), nn.ReLU(inplace=True)

    def part(self, x):
        x = self.bn0(x)
        y = self.bn1(self.conv1(self.act(x)))
        y += x  # sees what the in-place activation did
        return y.mul_(0.5)


class Grouped(Part):
    def build(self):
        self.grouped, self.bn, self.after = conv(16, 32, groups=4), norm(32), conv(32, 16, 1)

    def part(self, x):
        return self.after(self.bn(self.grouped(x)))


class Depthwise(Part):
    def build(self):
        self.dw, self.bn = conv(16, 16, stride=2, groups=16), norm(16)

    def part(self, x):
        return F.silu(self.bn(self.dw(x)))


class Strided(Part):
    def build(self):
        self.down, self.more, self.pool = conv(16, 16, stride=2), conv(16, 16, stride=2), nn.MaxPool2d(2)

    def part(self, x):
        return self.pool(self.more(self.down(x)))


class Dense(Part):
    """Concatenations of concatenations, with a norm over all their pieces."""

    def build(self):
        self.conv1, self.conv2 = conv(16, 8), conv(24, 8)
        self.bn, self.out = norm(32), conv(32, 16, 1)

    def part(self, x):
        x = torch.cat([x, self.conv1(x)], 1)
        x = torch.cat((x, self.conv2(x)), dim=1)
        return self.out(F.relu(self.bn(x)))


class Squeeze(Part):
    """Gates from the mean of both parts, as in squeeze-and-excitation and ECA, and a learned scale."""

    def build(self):
        self.fc1, self.fc2, self.eca = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), nn.Conv1d(1, 1, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
        self.middle = conv(16, 16)

    def part(self, x):
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        x = self.middle(x * torch.sigmoid(gate)) * self.scale
        eca = self.eca(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(x.size(0), x.size(dim=1), 1, 1)
        return x * eca.expand_as(x)


class SpatialGate(Part):
    """A gate for each pixel, the same for all channels."""

    def build(self):
        self.gate, self.middle = conv(16, 1, 1), conv(16, 16)

    def part(self, x):
        return self.middle(x * torch.sigmoid(self.gate(x)))


class GatedPieces(Part):
    """Squeeze-and-excitation of concatenated channels, and an index that takes all of them, as in GhostNet."""

    def build(self):
        self.more, self.fc, self.out = conv(16, 8), nn.Conv2d(24, 24, 1), conv(24, 16)

    def part(self, x):
        x = torch.cat([x, self.more(x)], 1)[:, :24, :, :]
        return self.out(x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True))))


class ChannelPool(Part):
    """A pooling of volumes takes the channels of maps for an axis."""

    def build(self):
        self.more, self.pool, self.again = conv(16, 32), nn.MaxPool3d((2, 1, 1)), conv(16, 32)

    def part(self, x):
        return F.avg_pool3d(self.again(self.pool(self.more(x))), (2, 1, 1))


class Unknown(Part):
    """Operations that take plain tensors only, between layers that take octaves."""

    def build(self):
        self.inner, self.twice = conv(8, 8), conv(16, 16)
        self.end = conv(16, 16)

    def part(self, x):
        left, right = x.chunk(2, dim=1)
        x = torch.cat([self.inner(F.relu(self.inner_of(right))), left], 1).flip(1)
        x = self.twice(self.twice(x))
        return self.end(x.reshape(-1, 16, x.shape[2], x.size(3)))

    def inner_of(self, x):
        return x - 1


class Merged(Part):
    """Octaves that are cut inside groups and pieces, and merged."""

    def build(self):
        self.grouped, self.after, self.side = conv(16, 32, groups=4), conv(48, 16, 1), conv(48, 16, 1)

    def part(self, x):
        x = torch.cat([self.grouped(x), x], 1)
        return self.after(x) + self.side(x.flip(1))


class NormAndActivation(Part):
    """timm's norm with its activation in one module."""

    def build(self):
        self.bn, self.middle = timm.layers.BatchNormAct2d(16, act_layer=nn.SiLU), conv(16, 16)
        self.bn.load_state_dict(norm(16).state_dict())

    def part(self, x):
        return self.middle(self.bn(x))


class GroupNorms(Part):
    """Norms over groups of channels, which may be of both resolutions, over all of them, and over each by itself."""

    def build(self):
        self.groups, self.whole = timm.layers.GroupNormAct(16, 8, act_layer=nn.SiLU), nn.GroupNorm(1, 16)
        self.each, self.middle = nn.InstanceNorm2d(16, 1.0, affine=True), conv(16, 16)
        self.more, self.again = conv(16, 16), conv(16, 16)
        for module in (self.groups, self.whole, self.each):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)

    def part(self, x):
        return self.each(self.again(x) + self.whole(self.more(self.middle(self.groups(x)))))


class Pieces(Part):
    """Channels that are cut into pieces, equal ones or not, which go separate ways: as in YOLO's C2f and in Res2Net."""

    def build(self):
        self.wide, self.inner, self.out = conv(16, 24), conv(12, 12), conv(36, 16, 1)
        self.again, self.halves, self.last_piece = conv(16, 32), conv(12, 24), conv(4, 8)
        self.norm, self.end = norm(32), conv(32, 16, 1)

    def part(self, x):
        maps = list(F.relu(self.wide(x)).chunk(2, 1))
        maps.append(self.inner(maps[-1]) + maps[-1])
        x = F.silu(self.norm(self.again(self.out(torch.cat(maps, 1)))))
        first, second, third = torch.split(x, [16, 12, 4], dim=1)
        halves = self.halves(second).split(12, dim=1)
        return self.end(torch.cat([first[:, :12] * 1.5, halves[0] * halves[1] + halves[-2], self.last_piece(third)], 1))


class SmallPieces(Part):
    """A convolution reads what is also cut into pieces that are too small to have low channels."""

    def build(self):
        self.whole, self.more = conv(16, 16), conv(16, 16)
        self.pieces = nn.ModuleList([conv(2, 2) for _ in range(8)])

    def part(self, x):
        return self.more(self.whole(x)) + torch.cat([piece(y) for piece, y in zip(self.pieces, x.chunk(8, 1))], 1)


class Recut(Part):
    """Channels that are cut twice in the same way, as in a chain of residual blocks, and then in another."""

    def build(self):
        self.inner, self.more, self.end = nn.ModuleList([conv(8, 8), conv(8, 8)]), conv(16, 16), conv(16, 16)

    def part(self, x):
        for inner in self.inner:
            a, b = x.chunk(2, 1)
            x = x + torch.cat([a, inner(b)], 1)
        a, b = torch.split(x, [4, 12], 1)
        return self.end(self.more(torch.cat([F.relu(b), a], 1)))


class ChannelsLast(Part):
    """Linear layers on maps whose channels are in the last dimension, as in ConvNeXt, and what is unknown there."""

    def build(self):
        self.norm, self.fc1, self.drop = nn.LayerNorm(16), nn.Linear(16, 24), nn.Dropout(0.5)
        self.fc2, self.side = nn.Linear(24, 16), nn.Linear(24, 16)
        self.after, self.norm2d = conv(32, 16, 1), timm.layers.LayerNorm2d(16)
        self.gamma = nn.Parameter(torch.rand(16) + 0.5)
        for module in (self.norm, self.norm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)

    def part(self, x):
        y = F.gelu(self.fc1(self.norm(x.permute(0, 2, 3, 1))))
        side = self.side(y.flip(3)) * 0.5
        y = self.fc2(self.drop(y)).permute(0, 3, 1, 2) * self.gamma.reshape(1, -1, 1, 1)
        return self.norm2d(self.after(torch.cat([x + y, torch.permute(side, (0, 3, 1, 2))], 1)))


class Response(Part):
    """ConvNeXt-V2's response norm, with the channels last and second, and a convolution that pads like TensorFlow."""

    def build(self):
        self.mlp = timm.layers.GlobalResponseNormMlp(16, 24, 16)
        self.norm, self.same = (
            timm.layers.grn.GlobalResponseNorm(16, channels_last=False),
            timm.layers.Conv2dSame(16, 16, 1),
        )
        for module in (self.mlp.grn, self.norm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)

    def part(self, x):
        return self.norm(self.same(x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))


class Standardized(Part):
    """timm's convolutions by standardised weights, with and without a gain, and a product in place as in NFNets."""

    def build(self):
        self.std, self.scaled = timm.layers.StdConv2d(16, 16, 1, bias=True), timm.layers.ScaledStdConv2d(16, 16, 1)
        nn.init.uniform_(self.scaled.gain, 0.5, 2)
        self.skipinit_gain = nn.Parameter(torch.tensor(0.5))

    def part(self, x):
        y = self.std(F.relu(self.scaled(x)))
        y.mul_(self.skipinit_gain)
        return y + x


class Upward(Part):
    """Transposed convolutions, as in a U-Net, of constant kernels: they keep constant maps constant."""

    def build(self):
        self.down, self.down_again = conv(16, 16, stride=2), conv(16, 12, stride=2)
        self.up, self.side = nn.ConvTranspose2d(12, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, 2, groups=4)
        self.deep, self.out = nn.ConvTranspose2d(16, 8, 2, 2, bias=False), conv(32, 16)
        for module in (self.up, self.side, self.deep):
            module.weight.data = module.weight.data.mean((2, 3), keepdim=True).expand_as(module.weight).contiguous()

    def part(self, x):
        y = self.down(x)
        deep = F.interpolate(self.up(self.down_again(y)), size=y.shape[-2:]) + y
        upper = (F.interpolate(maps, size=x.shape[-2:]) for maps in (self.side(y), self.deep(deep)))
        return self.out(torch.cat([x, *upper], 1))


class InPlace(Part):
    """An operation that takes plain tensors only, in place: what comes after it sees its result."""

    def build(self):
        self.conv1, self.conv2 = conv(16, 16), conv(16, 16)

    def part(self, x):
        x = self.conv1(x)
        x.cos_()
        return self.conv2(x)


class Pyramid(Part):
    """Two outputs of different sizes, one of them brought to the other's, as in a feature pyramid; and larger maps."""

    def build(self):
        self.down, self.deep, self.side = conv(16, 16, stride=2), conv(16, 16), conv(16, 16, 1)
        self.up, self.large = nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True), conv(16, 16)

    def part(self, x):
        y = self.deep(self.down(x))
        return self.large(self.up(self.side(x) + F.interpolate(y, size=x.shape[-2:])))


PARTS = [
    Plain,
    Residual,
    Grouped,
    Depthwise,
    Strided,
    Dense,
    Squeeze,
    SpatialGate,
    GatedPieces,
    ChannelPool,
    Unknown,
    Merged,
    NormAndActivation,
    GroupNorms,
    Pieces,
    SmallPieces,
    Recut,
    ChannelsLast,
    Response,
    Standardized,
    Upward,
    InPlace,
    Pyramid,
]


def layer(plan, name):
    return next(layer for layer in plan.layers if layer.name == name)


def shuffled_spaces(net):
    """A random order for the channels of every space that may have one."""
    found = {}
    for node in net.steps:
        space, shape = net.spaces.of(node), node.meta.get("shape")
        if shape and len(shape) > 1 and (found_blocks := net.blocks(space)):
            blocks, movable = found_blocks
            size = net.channels(space) // blocks
            order = torch.randperm(blocks) if movable else torch.arange(blocks)
            found[space] = torch.cat([i * size + torch.randperm(size) for i in order])
    return found
