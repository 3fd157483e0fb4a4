"""What the networks share: octave or plain layers, the promises to timm, pretrained configurations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SqueezeExcite, create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models._features_fx import register_notrace_function, register_notrace_module
from torch import Tensor, nn

from ..nn import Merge, OctBatchNorm2d, OctConv2d, OctMap, OctSqueezeExcite, Split
from ..nn._mark import AlphaMarked
from ..octave import Octave, merge_tensor

for _layer in (OctConv2d, OctBatchNorm2d, OctSqueezeExcite, OctMap, Merge, Split):
    register_notrace_module(_layer)  # tracing into one would lose its low part
register_notrace_function(merge_tensor)

DEFAULT_ALPHA = 0.25


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one network: octave layers, or the plain ones of the dense twin."""

    octave: bool
    eps: float = 1e-5
    momentum: float = 0.1

    def conv(
        self, in_chs: int, out_chs: int, kernel: int, stride: int = 1, groups: int = 1, *, alpha_in: float = 0.0,
        alpha_out: float = 0.0, cut_in: int | None = None, cut_out: int | None = None,
    ) -> nn.Module:  # fmt: skip
        """A convolution without bias that keeps the size, or halves it at stride 2."""
        if not self.octave:
            return nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return OctConv2d(
            in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False,
            alpha_in=alpha_in, alpha_out=alpha_out, cut_in=cut_in, cut_out=cut_out,
        )  # fmt: skip

    def norm(self, channels: int, alpha: float = 0.0, cut: int = 1) -> nn.Module:
        """Batch normalisation."""
        if not self.octave:
            return nn.BatchNorm2d(channels, self.eps, self.momentum)
        return OctBatchNorm2d(channels, self.eps, self.momentum, alpha=alpha, cut=cut)

    def act(self) -> nn.Module:
        """ReLU."""
        return OctMap(nn.ReLU(inplace=True)) if self.octave else nn.ReLU(inplace=True)

    def se(self, channels: int, alpha: float) -> nn.Module:
        """Squeeze-and-excitation with a bottleneck of a sixteenth."""
        if not self.octave:
            return SqueezeExcite(channels, rd_channels=channels // 16)  # type: ignore[no-any-return]
        return OctSqueezeExcite(channels, rd_channels=channels // 16, alpha=alpha)

    def split(self, channels: int, alpha_in: float, alpha_out: float) -> nn.Module:
        """The parameter-free shortcut of a block whose output alone is split; the identity elsewhere."""
        if alpha_in == alpha_out:
            return nn.Identity()
        if alpha_in:
            raise ValueError(f"no shortcut without parameters leads from alpha {alpha_in} to {alpha_out}")
        return Split(channels, alpha_out)


class OctNet(AlphaMarked):
    """The promises that every network keeps to timm: features, head, checkpointing, parameter groups.

    A subclass sets the stem, the stages ``layer1`` ... ``layer4`` and what else it needs, then calls `_finish`.
    """

    stage_names = ("layer1", "layer2", "layer3", "layer4")
    stem_reduction = 2  # of the stem's feature map
    stem_pool_reduction = 4  # of the first stage's
    num_classes: int

    def _finish(self, alpha: float, widths: list[int], num_classes: int, global_pool: str, drop_rate: float) -> None:
        """Build the head and note what timm asks for; ``widths`` are the stem's and the stages' channels."""
        self.alpha = alpha
        self.alpha_mark = (alpha,)
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = widths[-1]
        reductions = [self.stem_reduction, *(self.stem_pool_reduction * 2**i for i in range(len(self.stage_names)))]
        self.feature_info = [
            dict(num_chs=width, reduction=reduction, module=module)
            for width, reduction, module in zip(widths, reductions, ["act1", *self.stage_names])
        ]
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_stem(self, x: Tensor) -> Tensor:
        """The stem up to its feature map."""
        raise NotImplementedError

    def forward_stem_pool(self, x: Tensor) -> Tensor:
        """What lies between the stem's feature map and the first stage."""
        raise NotImplementedError

    def forward_norm(self, x: Tensor) -> Tensor:
        """What follows the last stage, before pooling: a pre-activation network has a norm there."""
        return x

    def _stages(self, x: Tensor) -> Iterator[Tensor | Octave]:
        """The stem's feature map, then the output of each stage."""
        x = self.forward_stem(x)
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
        for out in self._stages(x):  # noqa: B007  # only the last is kept, so that the others can be freed
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
        self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:  # fmt: skip
        """The stem's and the stages' feature maps, each merged to one tensor ``[N, C, ceil(H/r), ceil(W/r)]``.

        Args, returns: as every timm network's method of this name.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        size, taken = x.shape[-2:], []
        out: Tensor | Octave = x
        for i, out in enumerate(self._stages(x)):
            if i in take:
                reduction = self.feature_info[i]["reduction"]
                taken.append(merge_tensor(out, (-(-size[0] // reduction), -(-size[1] // reduction))))
            if stop_early and i == last:
                break
        if i == len(self.stage_names) and (norm or not intermediates_only):
            out = self.forward_norm(merge_tensor(out))  # once: in training it counts a batch
            if norm and i in take:
                taken[-1] = out
        return taken if intermediates_only else (merge_tensor(out), taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last wanted feature map; return the indices kept."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        for name in self.stage_names[last:]:
            setattr(self, name, nn.Sequential())
        if last < len(self.stage_names):
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_norm or last < len(self.stage_names):
            self.prune_norm()
        if prune_head or last < len(self.stage_names):
            self.reset_classifier(0, "")
        return take  # type: ignore[no-any-return]

    def prune_norm(self) -> None:
        """Drop what `forward_norm` holds."""

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; ``num_classes=0`` leaves none."""
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
        return dict(stem=r"^conv1|^bn1", blocks=[(blocks, None), (r"^norm", (99999,))])


def stage_alphas(alpha: float) -> list[float]:
    """Alpha of each of the four stages: the last one is dense, its map being too small to halve."""
    return [alpha, alpha, alpha, 0.0]


def build(cls: type[OctNet], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Build a registered network by timm's builder."""
    return build_model_with_cfg(
        cls, variant, pretrained, feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter"), **kwargs
    )


def cfg(**kwargs: Any) -> dict[str, Any]:
    """A pretrained configuration with ImageNet's defaults and no weights."""
    return dict(
        num_classes=1000, input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, interpolation="bilinear",
        mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, first_conv="conv1", classifier="fc",
    ) | kwargs  # fmt: skip
