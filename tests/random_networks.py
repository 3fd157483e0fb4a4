"""Random networks over the whole vocabulary of image networks, for comparing `oc.deploy` with eager PyTorch."""

import random

import torch
import torch.nn.functional as F
from torch import nn

import octaveconv as oc

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.Tanh,
    nn.Mish,
    nn.Softplus,
    nn.PReLU,
    nn.Hardtanh,
    nn.SELU,
    nn.CELU,
    nn.LogSigmoid,
    nn.Softsign,
    nn.Hardshrink,
)
MAX_CHANNELS, MAX_NUMBERS = 48, 2_000_000


class RandomNetwork(nn.Module):
    """Applies random operations, each to random values that came before; `forward` repeats what was drawn.

    Args:
        seed: of everything: operations, sizes, weights.
        length: operations.
    """

    def __init__(self, seed, length=None):
        super().__init__()
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        length = self.draw.randint(2, 8) if length is None else length
        self.layers = nn.ModuleList()
        self.steps = []
        self.names = []
        channels = self.draw.choice((1, 3, 4))
        self.example = torch.randn(self.draw.choice((1, 2, 3)), channels, *self.draw.choices(range(20, 41), k=2))
        values = [self.example]
        self.add(values, "conv")
        while len(self.steps) < length:
            self.add(values, self.draw.choice(OPERATIONS))
        last = len(values) - 1
        self.outputs = [last] + [i for i in range(1, last) if self.draw.random() < 0.1]
        self.form = self.draw.choice(("one", "tuple", "dict"))
        self.eval()

    def add(self, values, name):
        """Append an operation if it can take one of the latest values."""
        count, x = len(self.layers), self.draw.choice(range(max(0, len(values) - 4), len(values)))
        try:
            step = getattr(self, f"draw_{name}")(values, x)
            with torch.no_grad():
                made = None if step is None else step([value.clone() for value in values])
        except (RuntimeError, ValueError, IndexError):  # these sizes do not fit each other
            made = None
        if not isinstance(made, torch.Tensor) or not 0 < made.numel() <= MAX_NUMBERS or not made.isfinite().all():
            del self.layers[count:]
            return
        if made.dim() == 4 and made.shape[1] > MAX_CHANNELS:
            del self.layers[count:]
            return
        values.append(made)
        self.steps.append(step)
        self.names.append(name)

    def forward(self, x):
        values = [x]
        for step in self.steps:
            values.append(step(values))
        found = [values[i] for i in self.outputs]
        if self.form == "one" or len(found) == 1:
            return found[0]
        return tuple(found) if self.form == "tuple" else {f"out{i}": y for i, y in enumerate(found)}

    def __deepcopy__(self, memo):
        return self  # what the steps call is found through this object; nothing here changes its weights

    def layer(self, module):
        """Keep a layer; return its number."""
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm2d, oc.OctBatchNorm2d)):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
        self.layers.append(module.eval())
        return len(self.layers) - 1

    def single(self, module, x):
        return Call(self, self.layer(module), x)

    # Each draws one operation: a function of the list of values.

    def draw_conv(self, values, x):
        channels, draw = values[x].shape[1], self.draw
        out = draw.choice((1, 3, 8, 12, 16, 24))
        groups = draw.choice([g for g in (1, 1, 1, 2, 4, channels) if channels % g == 0 and out % g == 0])
        if draw.random() < 0.2:
            groups = out = channels
        kernel = draw.choice((1, 1, 3, 3, 5, (1, 3), (3, 2)))
        dilation = draw.choice((1, 1, 2))
        padding = draw.choice((0, 1, 2, "same", (1, 0)))
        stride = 1 if padding == "same" else draw.choice((1, 1, 2, (2, 1), 3))
        mode = draw.choice(("zeros", "zeros", "zeros", "reflect", "replicate", "circular"))
        return self.single(
            nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, draw.random() < 0.7, mode), x
        )

    def draw_transposed(self, values, x):
        channels = values[x].shape[1]
        return self.single(
            nn.ConvTranspose2d(channels, self.draw.choice((4, 8)), *self.draw.choice(((2, 2), (4, 2, 1), (3, 1, 1)))), x
        )

    def draw_octave(self, values, x):
        channels, draw = values[x].shape[1], self.draw
        first, second = (draw.choice((0, 0.25, 0.5, 0.75, 1)) for _ in range(2))
        wide = draw.choice((8, 16))
        layers = [
            oc.OctConv2d(channels, wide, 3, draw.choice((1, 2)), 1, alpha_out=first),
            oc.OctBatchNorm2d(wide, alpha=first),
            oc.OctMap(nn.ReLU()),
            oc.OctConv2d(wide, wide, draw.choice((1, 3)), 1, "same", alpha_in=first, alpha_out=second),
            oc.Merge(),
        ]
        return self.single(nn.Sequential(*layers), x)

    def draw_norm(self, values, x):
        channels = values[x].shape[1]
        norms = [
            nn.BatchNorm2d(channels),
            nn.BatchNorm2d(channels, affine=False),
            nn.InstanceNorm2d(channels, affine=True),
            nn.GroupNorm(1, channels),
        ]
        return self.single(self.draw.choice(norms[:2] * 3 + norms), x)

    def draw_activation(self, values, x):
        return self.single(self.draw.choice(ACTIVATIONS[:6] * 2 + ACTIVATIONS)(), x)

    def draw_pool(self, values, x):
        draw = self.draw
        kernel, ceil = draw.choice((2, 3, (3, 2))), draw.random() < 0.5
        stride, padding = draw.choice((1, 2, 2)), draw.choice((0, 0, 1))
        if draw.random() < 0.5:
            return self.single(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), x)
        return self.single(nn.AvgPool2d(kernel, stride, padding, ceil, draw.random() < 0.5), x)

    def draw_adaptive(self, values, x):
        kind = self.draw.choice((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
        return self.single(kind(self.draw.choice((1, 1, 2, (3, 1), 5))), x)

    def draw_resize(self, values, x):
        mode = self.draw.choice(("nearest", "nearest", "bilinear"))
        return self.single(nn.Upsample(scale_factor=self.draw.choice((2, 2, 3, 1.5)), mode=mode), x)

    def draw_cat(self, values, x):
        others = [
            i
            for i, value in enumerate(values)
            if value.shape[0] == values[x].shape[0] and value.shape[2:] == values[x].shape[2:]
        ]
        chosen = [self.draw.choice(others) for _ in range(self.draw.choice((1, 2, 2, 3)))]
        return lambda v: torch.cat([v[i] for i in (x, *chosen)], 1)

    def draw_piece(self, values, x):
        i, count = self.draw.choice((0, 1)), self.draw.choice((2, 3))
        sizes = [1, values[x].shape[1] - 1]
        return self.draw.choice((lambda v: v[x].chunk(count, 1)[i], lambda v: v[x].split(sizes, 1)[i]))

    def draw_slice(self, values, x):
        return self.draw.choice(
            (
                lambda v: v[x][:, 1:],
                lambda v: v[x][:, :-1],
                lambda v: v[x][:, ::2],
                lambda v: v[x][:, :, 1:],
                lambda v: v[x][:, :, : v[x].shape[2] // 2],
                lambda v: v[x][..., :-1],
                lambda v: v[x][:, -2:],
                lambda v: v[x].narrow(1, 0, 1),
                lambda v: v[x].flip(3),
            )
        )

    def draw_number(self, values, x):
        a = round(self.draw.uniform(-2, 2), 2)
        return self.draw.choice(
            (
                lambda v: v[x] + a,
                lambda v: a - v[x],
                lambda v: v[x] * a,
                lambda v: v[x] / 3,
                lambda v: -v[x],
                lambda v: v[x] - a,
                lambda v: torch.sub(v[x], a, alpha=2),
                lambda v: v[x].square(),
                lambda v: v[x].abs(),
                lambda v: v[x].clamp(-1, 0.5),
                lambda v: v[x].clamp(min=a),
                lambda v: torch.rsub(v[x], a),
            )
        )

    def draw_constant(self, values, x):
        channels, width = values[x].shape[1], values[x].shape[-1]
        shape = self.draw.choice(((channels, 1, 1), (1, channels, 1, 1), (1, 1, 1), (1,), (width,), (1, 1, 1, 1)))
        number = self.layer(nn.ParameterList([torch.randn(shape)]))
        get = lambda: self.layers[number][0]  # noqa: E731
        return self.draw.choice(
            (
                lambda v: v[x] + get(),
                lambda v: get() - v[x],
                lambda v: v[x] * get(),
                lambda v: v[x] - get(),
                lambda v: torch.sub(get(), v[x], alpha=2),
                lambda v: torch.add(v[x], get(), alpha=-1.5),
                lambda v: get() + v[x],
            )
        )

    def draw_binary(self, values, x):
        alike = [i for i, value in enumerate(values) if value.shape == values[x].shape]
        y = self.draw.choice(alike)
        return self.draw.choice(
            (
                lambda v: v[x] + v[y],
                lambda v: v[x] - v[y],
                lambda v: v[x] * v[y],
                lambda v: torch.add(v[x], v[y], alpha=2),
                lambda v: torch.sub(v[x], v[y], alpha=0.5),
                lambda v: torch.maximum(v[x], v[y]),
                lambda v: v[x] + v[y] + v[x],
            )
        )

    def draw_in_place(self, values, x):
        y = self.draw.randrange(len(values))

        def on_view(v):
            z = v[x] * 1.5
            part = z[:, :1]
            part.add_(1)
            return z

        def view_before(v):
            z = v[x] + 0.25
            part = z[:, :1]
            z.relu_()
            return torch.cat([part, z], 1)

        def plain(v):
            z = v[x].clone()
            z.mul_(2).add_(v[x])
            return z

        def later(v):
            z = v[y] + 1
            w = z.relu_()
            return w + z

        return self.draw.choice((on_view, view_before, plain, later))

    def draw_gate(self, values, x):
        channels, draw = values[x].shape[1], self.draw
        squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, channels, 1),
            draw.choice((nn.Sigmoid, nn.Hardsigmoid))(),
        )
        number = self.layer(squeeze)
        return self.draw.choice(
            (
                lambda v: v[x] * self.layers[number](v[x]),
                lambda v: self.layers[number](v[x]) * v[x],
                lambda v: v[x] + self.layers[number](v[x]),
            )
        )

    def draw_mean(self, values, x):
        return self.draw.choice(
            (
                lambda v: v[x].mean((2, 3), keepdim=True),
                lambda v: v[x].mean(1, keepdim=True),
                lambda v: v[x].amax(1, keepdim=True),
                lambda v: v[x].mean((2, 3), keepdim=True) * v[x],
                lambda v: v[x] - v[x].mean(0, keepdim=True),
                lambda v: v[x].mean(3, keepdim=True),
                lambda v: v[x].softmax(1),
            )
        )

    def draw_pad(self, values, x):
        pad = self.draw.choice(((1, 1, 1, 1), (0, 1, 0, 1), (-1, 0, 0, 0), (2, 0, 1, 0)))
        return lambda v: F.pad(v[x], pad)

    def draw_shuffle(self, values, x):
        channels = values[x].shape[1]
        if channels % 2:
            return None
        shuffled = lambda v: v[x].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)  # noqa: E731
        return self.draw.choice((shuffled, lambda v: F.pixel_shuffle(v[x], 2)))

    def draw_pixel_linear(self, values, x):
        number = self.layer(nn.Linear(values[x].shape[1], self.draw.choice((4, 8))))
        return lambda v: self.layers[number](v[x].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def draw_pixel_block(self, values, x):
        """As in ConvNeXt."""
        channels = values[x].shape[1]
        layers = [nn.LayerNorm(channels), nn.Linear(channels, 8), nn.GELU(), nn.Linear(8, channels)]
        number = self.layer(nn.Sequential(*layers[self.draw.choice((0, 1)) :]))
        scale = self.layer(nn.ParameterList([torch.randn(channels)]))
        return lambda v: (
            v[x] + (self.layers[number](v[x].permute(0, 2, 3, 1)) * self.layers[scale][0]).permute(0, 3, 1, 2)
        )

    def draw_tokens(self, values, x):
        """As in a vision transformer."""
        channels = values[x].shape[1]
        number = self.layer(nn.ModuleList([nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)]))
        attends = self.draw.random() < 0.3 and values[x].shape[2:].numel() < 200

        def mixed(v):
            norm, linear = self.layers[number]
            y = v[x].flatten(2).transpose(1, 2)
            first, second, third = linear(norm(y)).chunk(3, -1)
            y = y + (F.scaled_dot_product_attention(first, second, third) if attends else first.tanh() * second)
            return y.transpose(1, 2).unflatten(2, v[x].shape[2:])

        return mixed

    def draw_head(self, values, x):
        number = self.layer(nn.Linear(values[x].shape[1], 5))
        number2 = self.layer(nn.Linear(5, values[x].shape[1]))

        def gate(v):
            y = self.layers[number2](self.layers[number](v[x].mean((2, 3))).relu())
            return v[x] * y.sigmoid()[:, :, None, None]

        return gate


class Call:
    """A layer of the network, called with one value."""

    def __init__(self, network, number, x):
        self.network, self.number, self.x = network, number, x

    def __call__(self, values):
        return self.network.layers[self.number](values[self.x])


OPERATIONS = [name.removeprefix("draw_") for name in vars(RandomNetwork) if name.startswith("draw_")]
OPERATIONS += ["conv"] * 6 + ["norm", "activation", "octave", "binary"] * 2
