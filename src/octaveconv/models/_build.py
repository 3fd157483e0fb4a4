"""What the networks share: octave or plain layers, and timm's interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers import SqueezeExcite, create_classifier
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..nn import OctBatchNorm2d, OctConv2d, OctMap, OctSqueezeExcite, Split
from ..nn._mark import AlphaMarked
from ..octave import ChannelSplit, Octave, alpha_of, merge_tensor

DEFAULT_ALPHA = 0.25
Alpha = float | ChannelSplit


@dataclass(frozen=True)
class Layers:
    """Makes the layers of a network: octave layers, or the plain layers of the dense twin.

    Where alpha is 0, as in the last stage, the layers of an octave network return plain tensors, too.
    """

    octave: bool
    eps: float = 1e-5
    momentum: float = 0.1
    act_layer: type[nn.Module] = nn.ReLU

    def conv(
        self,
        in_chs: int,
        out_chs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        alpha_in: Alpha = 0.0,
        alpha_out: Alpha = 0.0,
        cut_in: int | None = None,
        cut_out: int | None = None,
        dilation: int = 1,
    ) -> nn.Module:
        """A convolution without bias that keeps the size, or halves it at stride 2."""
        padding = kernel // 2 * dilation
        if not self.octave:
            return nn.Conv2d(in_chs, out_chs, kernel, stride, padding, dilation, groups, bias=False)
        layer = OctConv2d(
            in_chs,
            out_chs,
            kernel,
            stride,
            padding,
            dilation,
            groups,
            bias=False,
            alpha_in=alpha_in,
            alpha_out=alpha_out,
            cut_in=cut_in,
            cut_out=cut_out,
        )
        layer._returns_tensor = not alpha_of(alpha_out)
        return layer

    def norm(self, channels: int, alpha: Alpha = 0.0, cut: int = 1, affine: bool = True) -> nn.Module:
        """Batch normalisation."""
        if not self.octave:
            return nn.BatchNorm2d(channels, self.eps, self.momentum, affine)
        layer = OctBatchNorm2d(channels, self.eps, self.momentum, affine, alpha=alpha, cut=cut)
        layer._returns_tensor = not alpha_of(alpha)
        return layer

    def act(self, alpha: Alpha = 0.0) -> nn.Module:
        """The network's activation."""
        return self.map(self.act_layer(inplace=True), alpha)

    def map(self, module: nn.Module, alpha: Alpha) -> nn.Module:
        """A module that acts on each frequency separately."""
        return OctMap(module) if self.octave and alpha_of(alpha) else module

    def se(self, channels: int, alpha: Alpha) -> nn.Module:
        """Squeeze-and-excitation whose bottleneck has a sixteenth of the channels."""
        if not self.octave or not alpha_of(alpha):
            return SqueezeExcite(channels, rd_channels=channels // 16)  # type: ignore[no-any-return]
        return OctSqueezeExcite(channels, rd_channels=channels // 16, alpha=alpha)

    def split(self, channels: int, alpha_in: float, alpha_out: float) -> nn.Module:
        """A parameter-free shortcut: the identity, or a split of the block's dense input."""
        if alpha_in == alpha_out:
            return nn.Identity()
        if alpha_in:
            raise ValueError(
                f"a parameter-free shortcut cannot lead from alpha {alpha_in} to {alpha_out}: use a 1x1 convolution"
            )
        return Split(channels, alpha_out)


class OctNet(AlphaMarked):
    """timm's interface, which every network has: features, head, checkpointing, parameter groups.

    A subclass sets the stem, the stages ``layer1`` ... ``layer4`` and whatever else it needs, then calls `_finish`.
    There are five feature maps: that of the stem, or of a ``layer0`` after it, and those of the four stages. Their
    strides are the ``reductions``.
    """

    stage_names: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")
    reductions: tuple[int, ...] = (2, 4, 8, 16, 32)
    dilates = False  # whether an ``output_stride`` below 32 can be had
    num_classes: int
    feature_info: list[dict[str, Any]]
    conv1: nn.Module
    bn1: nn.Module
    act1: nn.Module

    def _finish(
        self,
        alpha: float,
        widths: list[int],
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        num_features: int | None = None,
    ) -> None:
        """Build the head and set the attributes that timm expects.

        ``widths`` are the channels of the five feature maps, ``num_features`` those of the output of `forward_norm`.
        """
        self.alpha = alpha = float(alpha)  # a plain number, for files of weights
        self.alpha_mark = (alpha,)
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = num_features or widths[-1]
        modules = ["act1", *self.stage_names][-len(widths) :]  # a layer0 takes the stem's place
        self.feature_info = [
            dict(num_chs=width, reduction=reduction, module=module)
            for width, reduction, module in zip(widths, self.reductions, modules)
        ]
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_stem(self, x: Tensor) -> Tensor:
        """The stem: convolution, norm, activation."""
        return self.act1(self.bn1(self.conv1(x)))  # type: ignore[no-any-return]

    def forward_stem_pool(self, x: Tensor) -> Tensor:
        """The layers between the stem and the first stage."""
        return x

    def forward_norm(self, x: Tensor) -> Tensor:
        """The layers between the last stage and global pooling, such as the last norm of a pre-activation network."""
        return x

    def _feature_maps(self, x: Tensor) -> Iterator[Tensor | Octave]:
        """The feature maps of ``feature_info``, in order."""
        x = self.forward_stem(x)
        if self.feature_info[0]["module"] not in self.stage_names:
            yield x
        out: Tensor | Octave = self.forward_stem_pool(x)
        for name in self.stage_names:
            stage = getattr(self, name)
            if self.grad_checkpointing and self.training:
                out = checkpoint_seq(stage, out, use_reentrant=False)
            else:
                out = stage(out)
            yield out

    def forward_features(self, x: Tensor) -> Tensor:
        """Everything before global pooling: ``[N, C, ceil(H/32), ceil(W/32)]``."""
        out: Tensor | Octave = x
        for out in self._feature_maps(x):  # noqa: B007  # keeps only the last, so that the others can be freed
            pass
        return self.forward_norm(merge_tensor(out))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Global pooling and classifier."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = nn.functional.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The feature maps of the stem and the stages, each merged to a tensor ``[N, C, ceil(H/r), ceil(W/r)]``.

        Args, returns: as in every network of timm.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        size, taken = x.shape[-2:], []
        out: Tensor | Octave = x
        for i, out in enumerate(self._feature_maps(x)):
            if i in take:
                reduction = self.feature_info[i]["reduction"]
                height, width = (-(-n // reduction) for n in size)
                # at alpha 1 the size of an odd high map is not known, and the merged map is a pixel too large
                taken.append(merge_tensor(out, (height, width))[..., :height, :width])
            if stop_early and i == last:
                break
        if i + 1 == len(self.feature_info) and (norm or not intermediates_only):
            out = self.forward_norm(merge_tensor(out))  # only once: in training it counts a batch
            if norm and i in take:
                taken[-1] = out
        return taken if intermediates_only else (merge_tensor(out), taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last feature map of ``indices``; return the indices that are kept."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        dropped = self.feature_info[last + 1 :]
        for info in dropped:
            setattr(self, info["module"], nn.Sequential())
        if prune_norm or dropped:
            self.prune_norm()
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or dropped:
            self.reset_classifier(0, "")
        return take  # type: ignore[no-any-return]

    def prune_norm(self) -> None:
        """Drop the layers of `forward_norm`."""

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; ``num_classes=0`` removes it."""
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        like = next(self.parameters())
        head = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.global_pool, self.fc = (part.to(like.device, like.dtype).train(self.training) for part in head)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into stem and blocks, for layer-wise learning rates."""
        blocks = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return dict(stem=r"^conv1|^bn1|^maxpool", blocks=[(blocks, None), (r"^conv_head|^norm", (99999,))])


def depths(layers: Sequence[int], stages: int = 4) -> Sequence[int]:
    """The blocks of each stage, checked."""
    if len(layers) != stages or not all(isinstance(depth, int) and depth > 0 for depth in layers):
        raise ValueError(f"layers must be {stages} whole numbers from 1 up, the blocks of each stage, got {layers!r}")
    return layers


def stage_alphas(alpha: float) -> list[float]:
    """Alpha of each of the four stages: the last one is dense, because its map is too small to halve."""
    return [alpha, alpha, alpha, 0.0]
