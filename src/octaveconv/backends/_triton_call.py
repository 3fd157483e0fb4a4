"""The arguments of the operator ``octaveconv::octconv``, the outputs that follow from them, and the check of both."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..octave import ChannelSplit
from ..resolution import FACTORS
from ..spec import ConvSpec

Outputs = tuple[Tensor, Tensor, Tensor]


def layout_of(*tensors: Tensor | None) -> torch.memory_format:
    """The layout of what is computed from these: channels_last if one of them is so and not contiguous as well."""
    last = any(
        tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        for tensor in tensors
        if tensor is not None
    )
    return torch.channels_last if last else torch.contiguous_format


def present(part: Tensor) -> Tensor | None:
    """An output, or ``None`` if it has no channels because it is not wanted."""
    return part if part.shape[1] else None


class Call(NamedTuple):
    """The operator's arguments: those of `fused`, taken apart, with the weight as `_high_first` leaves it."""

    high: Tensor | None
    low: Tensor | None
    weight: Tensor
    bias: Tensor | None
    to_high: int
    stride: list[int]
    dilation: list[int]
    groups: int
    pooled: Tensor | None
    residual_high: Tensor | None
    residual_low: Tensor | None
    relu: bool
    with_pooled: bool
    origin_high: Tensor | None
    origin_low: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    statistics: Tensor | None

    def spec(self) -> ConvSpec:
        """The convolution that is asked for, with the channels in the order that they have here."""
        high, low = (0 if part is None else part.shape[1] for part in (self.high, self.low))
        outputs, _, *kernel = self.weight.shape
        cut = 1 if 1 < self.groups == outputs == high + low else self.groups  # 1: depthwise
        padding = [d * (k - 1) // 2 for d, k in zip(self.dilation, kernel)]
        return ConvSpec(
            ChannelSplit(high, low, cut), ChannelSplit(self.to_high, outputs - self.to_high, cut),
            tuple(kernel), tuple(self.stride), tuple(padding), tuple(self.dilation), self.groups, "zeros", None,
            FACTORS[2], tuple(2 // s for s in self.stride), (1, 1),
        )  # fmt: skip

    def layout(self) -> torch.memory_format:
        """The layout of the outputs."""
        return layout_of(self.high, self.low, self.weight)

    def allocate(self) -> Outputs:
        """The outputs high, low and pooled high, uninitialized; those that are not wanted have no channels."""
        part = self.low if self.high is None else self.high
        assert part is not None
        size = [n * (2 // s) if self.high is None else -(-n // s) for n, s in zip(part.shape[2:], self.stride)]
        half = [-(-n // 2) for n in size]
        layout = self.layout()
        wanted = [(self.to_high, size), (self.weight.shape[0] - self.to_high, half), (self.to_high, half)]
        if not self.with_pooled:
            wanted[2] = (0, half)
        high, low, pooled = (
            torch.empty((part.shape[0], n, *pixels), dtype=part.dtype, device=part.device, memory_format=layout)
            for n, pixels in wanted
        )
        return high, low, pooled


def check(call: Call, spec: ConvSpec, out: Outputs) -> None:
    """Refuse what the kernels would misread: they see addresses, not tensors."""
    images, _, height, width = out[0].shape
    half = -(-height // 2), -(-width // 2)
    low_size = (half[0] if spec.stride[0] == 1 else height), (half[1] if spec.stride[1] == 1 else width)
    channels = 1 if spec.depthwise else sum(spec.inputs[:2]) // spec.groups
    expected = {
        "the low part": (call.low, (images, spec.inputs.low, *low_size)),
        "the weight": (call.weight, (sum(spec.outputs[:2]), channels, *spec.kernel_size)),
        "the bias": (call.bias, (sum(spec.outputs[:2]),)),
        "the pooled part": (call.pooled, (images, spec.inputs.high, *half)),
        "the residual's high part": (call.residual_high, out[0].shape),
        "the residual's low part": (call.residual_low, out[1].shape),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor is not None and (tensor.dtype, tensor.device) != (out[0].dtype, out[0].device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, the input {out[0].dtype} on {out[0].device}: bring them "
                f"together with .to(), or use torch.autocast"
            )
    if (call.pooled is not None or call.with_pooled) and (spec.depthwise or spec.stride != (1, 1)):
        raise ValueError("pooled maps need stride 1 and no depthwise convolution: omit pooled and with_pooled")
    if spec.depthwise and (call.high is None or call.low is None):
        raise ValueError(
            "a depthwise convolution without a high or a low part is a plain one: use torch.nn.functional.conv2d"
        )
