"""The Triton backend: the operator ``octaveconv::octconv``, with its launch, shapes, gradient and cost.

Importing this file imports Triton, so the package waits until a call needs it. A program that was exported with the
operator needs ``import octaveconv.backends.triton`` before it is loaded. See ``docs/triton.md``.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

from ..octave import Octave
from ..resolution import pool
from ..spec import ConvSpec
from ._gradient import gradient
from ._triton_call import Call, Outputs, check, present
from ._triton_kernels import depthwise as depthwise_kernel
from ._triton_kernels import octave as octave_kernel
from ._triton_norm import Origin, batch_norm, normalize

__all__ = ["Origin", "batch_norm", "fused", "octconv"]


def octconv(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """The same map as `reference.octconv`; see there for shapes."""
    return fused(x, weight, bias, spec)[0]


def fused(
    x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec, *, pooled: Tensor | None = None,
    residual: Octave | None = None, relu: bool = False, with_pooled: bool = False, origin: Origin | None = None,
) -> tuple[Octave, Tensor | None]:  # fmt: skip
    """`octconv` and its neighbours in a network, in the same launch.

    Args:
        pooled: ``pool(x.high)``, if the previous layer wrote it; otherwise it is computed here. At stride 1. The
            gradient flows through ``x`` only.
        origin: what ``x`` was normalized from. It is kept for the gradient in place of ``x``.
        residual: is added to the output, whose parts and shapes it has. For inference only, like the next two.
        relu: whether to apply ReLU last.
        with_pooled: whether to write ``pool(y.high)`` too, for the next layer. At stride 1.

    Returns:
        The output ``y``, and ``pool(y.high)`` or ``None``.

    Raises:
        ValueError: shapes, dtypes or devices do not match, or there are pooled maps at another stride.
        NotImplementedError: a gradient is needed through residual, relu or with_pooled.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConv2d(8, 8, 1, alpha_in=0.5, alpha_out=0.5, device="meta")  # or "cuda"
        >>> x = oc.Octave(torch.ones(1, 4, 6, 6, device="meta"), torch.ones(1, 4, 3, 3, device="meta"))
        >>> with torch.no_grad():
        ...     y, pooled = fused(x, layer.weight, layer.bias, layer.spec, relu=True, with_pooled=True)
        >>> pooled.shape
        torch.Size([1, 4, 3, 3])
    """
    tensors = (*x, weight, bias, pooled, *(residual or Octave(None, None)))
    high, low, weight, bias, pooled, residual_high, residual_low = _autocast(*tensors)
    weight, bias = _high_first(weight, bias, spec)
    out = operator(
        high, low, weight, bias, spec.outputs.high, spec.stride, spec.dilation, spec.groups,
        pooled, residual_high, residual_low, relu, with_pooled, *(origin or [None] * 5),
    )  # fmt: skip
    y_high, y_low, y_pooled = map(present, out)
    return Octave(y_high, y_low), y_pooled


def _autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What autocast does to the arguments of a convolution."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast, and asking about it raises
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def _high_first(weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> tuple[Tensor, Tensor | None]:
    """Bring the high channels before the low ones. In a grouped convolution each group has them so already."""
    if spec.groups > 1 and not spec.depthwise:
        return weight, bias
    if not spec.depthwise:
        weight = spec.inputs.high_first(weight, 1)
    return spec.outputs.high_first(weight), None if bias is None else spec.outputs.high_first(bias)


@triton_op("octaveconv::octconv", mutates_args=())
def operator(
    high: Tensor | None, low: Tensor | None, weight: Tensor, bias: Tensor | None, to_high: int, stride: list[int],
    dilation: list[int], groups: int, pooled: Tensor | None, residual_high: Tensor | None,
    residual_low: Tensor | None, relu: bool, with_pooled: bool, origin_high: Tensor | None, origin_low: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, statistics: Tensor | None,
) -> Outputs:  # fmt: skip
    """What `fused` calls. An output that is not wanted has no channels."""
    call = Call(
        high, low, weight, bias, to_high, stride, dilation, groups, pooled, residual_high, residual_low, relu,
        with_pooled, origin_high, origin_low, norm_weight, norm_bias, statistics,
    )  # fmt: skip
    spec, out = call.spec(), call.allocate()
    check(call, spec, out)
    if out[0].numel() or out[1].numel():
        with torch.cuda.device_of(weight):
            (_launch_depthwise if spec.depthwise else _launch_octave)(call, spec, out)
    return out


def _launch_octave(call: Call, spec: ConvSpec, out: Outputs) -> None:
    high = None if call.high is None else pool(call.high, spec.stride)  # [N, C_high, ceil(H / stride), ...]
    source = high if call.pooled is None else call.pooled
    (images, _, height, width), half = out[0].shape, out[1].shape[2:]
    grow_y, grow_x = spec.growth
    blocks, pixels = images * -(-height // grow_y) * -(-width // grow_x), images * half[0] * half[1]
    in_high, in_low, to_high, to_low = (n // spec.groups for n in (*spec.inputs[:2], *spec.outputs[:2]))

    def grid(meta: dict[str, int]) -> tuple[int]:
        rows, columns = meta["BLOCK_M"], meta["BLOCK_N"]
        high_tiles = -(-blocks // (rows // (grow_y * grow_x))) * -(-to_high // columns)
        return (spec.groups * (high_tiles + -(-pixels // rows) * -(-to_low // columns)),)

    wrap_triton(octave_kernel)[grid](
        high, call.low, source, call.weight, call.bias, *_residuals(call), *map(present, out),
        *_strides(high), *_strides(call.low), *_strides(source), *call.weight.stride(),
        height, width, blocks, pixels, spec.groups, in_high, in_low, to_high, to_low,
        KY=spec.kernel_size[0], KX=spec.kernel_size[1], DY=spec.dilation[0], DX=spec.dilation[1],
        UY=grow_y, UX=grow_x, FACTOR=2 if call.pooled is None else 1,
        RELU=call.relu, LAST=call.layout() == torch.channels_last, PRECISION=_precision(),
    )  # fmt: skip


def _launch_depthwise(call: Call, spec: ConvSpec, out: Outputs) -> None:
    assert call.high is not None
    pixels = [part.shape[0] * part.shape[2] * part.shape[3] for part in out[:2]]
    channels = spec.outputs.high, spec.outputs.low

    def grid(meta: dict[str, int]) -> tuple[int]:
        rows, columns = meta["BLOCK_M"], meta["BLOCK_N"]
        return (sum(-(-count // rows) * -(-width // columns) for count, width in zip(pixels, channels)),)

    wrap_triton(depthwise_kernel)[grid](
        call.high, call.low, call.weight, call.bias, *_residuals(call), *out[:2],
        *_strides(call.high), *_strides(call.low), *call.weight.stride(),
        call.high.shape[2], call.high.shape[3], *pixels, *channels,
        KY=spec.kernel_size[0], KX=spec.kernel_size[1], DY=spec.dilation[0], DX=spec.dilation[1],
        SY=spec.stride[0], SX=spec.stride[1], RELU=call.relu, LAST=call.layout() == torch.channels_last,
    )  # fmt: skip


def _residuals(call: Call) -> list[Tensor | None]:
    """The residuals in the layout of the outputs, with which they are read."""
    return [
        None if part is None else part.contiguous(memory_format=call.layout())
        for part in (call.residual_high, call.residual_low)
    ]


def _strides(part: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if part is None else part.stride()


def _precision() -> str:
    """How float32 is multiplied: as in this process's other convolutions."""
    cudnn: Any = torch.backends.cudnn
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"


@operator.register_fake
def _(*args: Any) -> Outputs:
    return Call(*args).allocate()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    """Keep the weight and the input, or what the input was computed from, and nothing that was computed from them."""
    call = Call(*inputs)
    if call.relu or call.with_pooled or call.residual_high is not None or call.residual_low is not None:
        raise NotImplementedError(
            "octaveconv::octconv has no gradient through residual, relu or with_pooled: train with octconv, and use "
            "these under torch.inference_mode() or torch.no_grad()"
        )
    ctx.spec = call.spec()
    ctx.save_for_backward(call.weight, *((call.high, call.low) if call.statistics is None else inputs[-5:]))


def _gradient(ctx: Any, grad_high: Tensor, grad_low: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    weight, *kept = ctx.saved_tensors
    high, low = kept if len(kept) == 2 else _recompute(Origin(*kept), weight.dtype)
    gradients = gradient(Octave(high, low), weight, grad_high, grad_low, ctx.spec, ctx.needs_input_grad[:4])
    return (*gradients, *[None] * 14)


def _recompute(origin: Origin, dtype: torch.dtype) -> list[Tensor | None]:
    return [part.to(dtype) if part.shape[1] else None for part in normalize(*origin)]


operator.register_autograd(_gradient, setup_context=_keep)


@register_flop_formula(torch.ops.octaveconv.octconv)
def _flops(
    high: Any, low: Any, weight: Any, bias: Any, to_high: int, stride: Any, dilation: Any, groups: int,
    *fused: Any, out_shape: Any, **kwargs: Any,
) -> int:  # fmt: skip
    """Two for each multiply-add, as PyTorch counts; each path counts at the size at which it is convolved."""
    made_high, made_low, area = (int(prod(shape)) for shape in (out_shape[0], out_shape[1], weight[2:]))
    in_high, in_low = (0 if part is None else int(part[1]) for part in (high, low))
    if 1 < groups == weight[0] == in_high + in_low:  # depthwise
        return 2 * area * (made_high + made_low)
    before_growth = 0 if low is None else int(low[0] * to_high * prod(low[2:]))
    return 2 * area * (made_high * in_high + before_growth * in_low + made_low * (in_high + in_low)) // groups
