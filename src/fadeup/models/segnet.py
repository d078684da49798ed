"""SegNet: an encoder, and its mirror image whose upsampler is the argument (FADE, Table 2)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_count, check_map
from fadeup.models.autoencoder import POOLINGS, conv_block
from fadeup.models.pretrained import Pretrained
from fadeup.models.segformer import timm_features
from fadeup.models.weights import load_backbone
from fadeup.upsamplers import A2U, IndexNet, MaxUnpool, build_upsampler, resolve

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Width and number of convolutions of each stage."""


class SegNet(Pretrained, pipeline_tag="image-segmentation", tags=["semantic-segmentation"]):
    """SegNet with the upsampler of your choice.

    A stage of the encoder is followed by 2x2 pooling, the stage of the decoder that mirrors it comes after an
    upsampler guided by the map that was pooled. The last convolution of a decoder stage gives the next guide's
    channels, so that decoder and guide have equal ones everywhere.

    Args:
        num_classes: Channels of the logits.
        upsampler: Key of `fadeup.UPSAMPLERS` or an alias; `"max_unpool"` is SegNet's own.
        trunk: `"vgg16_bn"`, 13 convolutions with BatchNorm and five poolings, the decoder mirroring each; or a timm
            name with features at strides 2 to 32, which are the guides (at full size a 3x3 convolution of the image
            is, with `requires_grad=False` where no gradient reaches it: with max unpooling, and upsamplers that read
            only the size of their guide), each decoder stage then of two convolutions.
        pooling: `"max"`, as in the papers, or `"guided"` for the pooling half of IndexNet and A2U (VGG only).
        weights: Of the trunk, as in `fadeup.models.weights.load_backbone`.
        **options: Of the upsampler.

    Raises:
        ValueError: Trunk, upsampler or pooling is unknown, or the upsampler has no pooling half.
        ModuleNotFoundError: timm is missing.

    Source: Badrinarayanan et al., SegNet, TPAMI 2017; Lu et al., FADE, ECCV 2022, Table 2.
    """

    def __init__(
        self,
        num_classes: int,
        upsampler: str = "max_unpool",
        *,
        trunk: str = "vgg16_bn",
        pooling: str = "max",
        weights: str | Path | None = None,
        **options: Any,
    ):
        super().__init__()
        check_count("num_classes", num_classes)
        self.pooling = check_pooling(pooling, upsampler, None if trunk == "vgg16_bn" else trunk)
        if pooling == "guided" and resolve(upsampler)[0] is A2U:
            options["pooling"] = True
        if trunk == "vgg16_bn":
            widths, depths = zip(*VGG16, strict=True)
            self.trunk: nn.Module = VGG()
            self.stem = self.bridge = None
        else:
            self.trunk, channels = timm_features(trunk, (2, 4, 8, 16, 32), "trunk", ("vgg16_bn",))
            widths, depths = (channels[0], *channels[:-1]), (2,) * 5
            self.stem = conv_block(3, channels[0])
            self.bridge = conv_block(channels[-1], channels[-2])
        decoders = [
            mirrored(width, after, depth)
            for (after, width), depth in zip(pairwise((widths[0], *widths)), depths, strict=True)
        ]
        decoders[0][-1] = nn.Conv2d(widths[0], num_classes, 3, padding=1)
        self.decoders = nn.ModuleList(decoders)
        # Upsamplers last: with one seed all other layers start the same whatever the upsampler draws.
        self.upsamplers = nn.ModuleList(build_upsampler(upsampler, width, width, **options) for width in widths)
        if self.stem is not None and (resolve(upsampler)[0] is MaxUnpool or not self.upsamplers[0].reads_encoder):
            self.stem.requires_grad_(False)  # a parameter without gradient stops distributed training
        load_backbone(self.trunk, trunk, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, num_classes, H, W)` of normalised images `(B, 3, H, W)` of any size."""
        check_map("image", image, 3)
        x, guides = self.encode(image)
        for decoder, upsampler, guide in reversed(list(zip(self.decoders, self.upsamplers, guides, strict=True))):
            x = decoder(upsampler(x, guide))
        return x

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The smallest map, for the decoder, and the five guides, largest first."""
        if self.stem is not None and self.bridge is not None:
            *maps, last = self.trunk(image)
            return self.bridge(last), [self.stem(image), *maps]
        return self.trunk(image, [self._pool(upsampler) for upsampler in self.upsamplers])

    def _pool(self, upsampler: nn.Module) -> Callable[[Tensor], Tensor]:
        if self.pooling == "guided" and isinstance(upsampler, IndexNet | A2U):
            return upsampler.pool
        return _max_pool


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


class VGG(nn.Module):
    """The five stages of VGG-16, 3x3 convolutions with BatchNorm and ReLU, without pooling and classifier.

    Source: Simonyan, Zisserman, Very Deep Convolutional Networks, ICLR 2015.
    """

    def __init__(self):
        super().__init__()
        widths = (3, *(width for width, _ in VGG16))
        self.stages = nn.ModuleList(
            nn.Sequential(*(layer for i in range(depth) for layer in _conv_norm(before if i == 0 else width, width)))
            for (before, width), (_, depth) in zip(pairwise(widths), VGG16, strict=True)
        )

    def forward(self, image: Tensor, pools: list[Callable[[Tensor], Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """The smallest map, and what each stage gave before `pools` halved it, the largest first."""
        x, guides = image, []
        for stage, pool in zip(self.stages, pools, strict=True):
            guides.append(stage(x))
            x = pool(guides[-1])
        return x, guides


def _conv_norm(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """With a bias, though BatchNorm makes it redundant: published weights have one."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def mirrored(width: int, after: int, depth: int) -> nn.Sequential:
    """`depth` convolutions with BatchNorm and ReLU, of which the last changes the channels."""
    return nn.Sequential(*(conv_block(width, width) for _ in range(depth - 1)), conv_block(width, after))


def check_pooling(pooling: str, upsampler: str, trunk: str | None) -> str:
    """`pooling`, where it can be had with the upsampler and with a trunk that pools by itself, if `trunk` names one.

    Raises:
        ValueError: It cannot.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be 'max' or 'guided', got {pooling!r}")
    if pooling == "guided" and resolve(upsampler)[0] not in (IndexNet, A2U):
        raise ValueError(f"pooling must be 'max' for {upsampler!r}, which has no pooling half, got 'guided'")
    if pooling == "guided" and trunk is not None:
        raise ValueError(f"pooling must be 'max' for trunk {trunk!r}, which pools by itself, got 'guided'")
    return pooling
