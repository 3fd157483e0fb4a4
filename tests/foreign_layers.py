"""Layers in the forms in which other projects write theirs, for `foreign_networks`."""

import torch
import torch.nn.functional as F
from torch import nn


class Padded(nn.Module):
    """A convolution behind `F.pad`."""

    def __init__(self, conv, sides, mode):
        super().__init__()
        self.conv, self.sides, self.mode = conv, sides, mode

    def forward(self, x):
        return self.conv(F.pad(x, self.sides, self.mode))


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does, by code that asks for the size."""

    def forward(self, x):
        (h, w), (kh, kw), (sh, sw) = x.shape[-2:], self.weight.shape[-2:], self.stride
        down, right = max((-(-h // sh) - 1) * sh + kh - h, 0), max((-(-w // sw) - 1) * sw + kw - w, 0)
        if down > 0 or right > 0:
            x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StaticSameConv(nn.Conv2d):
    """Pads on one side, by a layer inside."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, self.padding)


class Called(nn.Module):
    """A convolution whose layer is never called, only its weight."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        conv = self.conv
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Equalized(nn.Module):
    """A convolution by scaled weights of its own, as in StyleGAN."""

    def __init__(self, channels, out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(out, channels, 3, 3)), nn.Parameter(torch.randn(out))

    def forward(self, x):
        return F.conv2d(x, self.weight * 0.1, self.bias, padding=1)


class Each(nn.Sequential):
    """`Sequential` with the input added."""

    def forward(self, x):
        return x + super().forward(x)


class Gated(nn.Module):
    """Half the channels gate the others."""

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(b)


class Squeeze(nn.Module):
    def __init__(self, channels, *, linear):
        super().__init__()
        self.linear = linear
        self.down, self.up = (
            (nn.Linear(channels, 2), nn.Linear(2, channels))
            if linear
            else (nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1))
        )

    def forward(self, x):
        if self.linear:
            y = self.up(F.relu(self.down(x.mean((2, 3)))))[:, :, None, None]
        else:
            y = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(y)


class PixelGate(nn.Module):
    """As in CBAM: the largest and the mean channel of each pixel gate it."""

    def __init__(self, make):
        super().__init__()
        self.conv = make(2, 1)

    def forward(self, x):
        y = torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)
        return x * self.conv(y).sigmoid()


class Shuffle(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Asked(nn.Module):
    """Pads maps of an odd size, and asserts the number of channels."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        assert x.shape[1] == self.channels
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1), mode="replicate")
        return x


class Branching(nn.Module):
    """Looks at values, so that torch.fx cannot follow it."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, **rest):
        y = self.body(x)
        return y if y.abs().sum() > -1 else -y


class Pixels(nn.Module):
    """Linear layers over channels that are last, as in ConvNeXt."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(channels, 0.5), nn.Linear(channels, 8), nn.Linear(8, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Styled(nn.Module):
    """Statistics of maps, as in style transfer."""

    def forward(self, x):
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
        return (x - mean) / (var + 0.5).sqrt() + mean.flip(1)


class Resized(nn.Module):
    """One value brought to the size of another, and both concatenated."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, x, y):
        return torch.cat([x, F.interpolate(y, size=x.shape[-2:], mode=self.mode)], 1)


class Joined(nn.Module):
    """Values of one size, joined in one of many ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, *values):
        first, *rest = values
        if self.way == "cat":
            return torch.cat(values, 1)
        if self.way == "sum":
            return sum(values)
        if self.way == "in place":
            y = first * 1
            for value in rest:
                y += value
            return F.relu_(y)
        if self.way == "product":
            return first * rest[0].sigmoid()
        if self.way == "largest":
            return torch.maximum(first, rest[0])
        stacked = torch.stack(values, 1)
        return stacked.sum(1) if self.way == "stack" else stacked.transpose(1, 2).flatten(1, 2)


class Levels(nn.Module):
    """One head for several levels, in a loop."""

    def __init__(self, before, head):
        super().__init__()
        self.before, self.head = nn.ModuleList(before), head

    def forward(self, values):
        found = []
        for layer, value in zip(self.before, values):
            found.append(self.head(layer(value)))
        return found


class Auxiliary(nn.Module):
    """Does more in training mode."""

    def __init__(self, make, channels):
        super().__init__()
        self.conv, self.more = make(channels, channels), nn.Dropout2d(0.5)

    def forward(self, x):
        y = self.conv(x)
        return self.more(y) if self.training else y


class Mirrored(nn.Module):
    def forward(self, weight):
        return (weight + weight.flip(-1)) / 2
