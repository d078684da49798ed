"""A2U's matting network, whose upsampler is the argument (FADE, Table 3)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_count, check_map
from fadeup.models.pretrained import Pretrained
from fadeup.models.segformer import timm_features
from fadeup.models.segnet import check_pooling
from fadeup.models.weights import load_backbone
from fadeup.upsamplers import A2U, IndexNet, build_upsampler, resolve

SLOPE = 0.01
RESNET34 = ((64, 3), (128, 4), (256, 4))
"""Width and number of residual blocks of the stages that are used: 11 blocks, the last stage has no place here."""


class MattingNet(Pretrained, pipeline_tag="image-segmentation", tags=["image-matting"]):
    """A2U's matting network with the upsampler of your choice.

        guides    g1, g2, g4, g8        maps of 1, 1/2, 1/4, 1/8, each as it is before it is pooled
        x         = ASPP(last map, 1/16)
        x         = block(block(upsampler_s(x, g_s) + shortcut_s))        s = 8, 4, 2, 1
        alpha     = head(x)

    With `trunk="resnet34"` it is the network of the papers: ResNet-34's first 11 residual blocks with a 7x7 stem of
    stride 1 and max pooling in place of strides, 8,049,003 parameters with `"bilinear"`, 8,173,011 with `"fade"`. The
    papers' in-place activated BatchNorm is BatchNorm and leaky ReLU here.

    With a trunk of timm it is a small network of the same shape: guides are convolutions of picture, trimap and the
    trunk's maps to `channels` channels, shortcuts start from the guides, and convolutions are depthwise separable. On
    EfficientNet-Lite0 it has 746,401 parameters with `"bilinear"`.

    Args:
        upsampler: Key of `fadeup.UPSAMPLERS` or an alias.
        trunk: `"resnet34"`, or a timm name with features at strides 2, 4, 8 and 16.
        channels: Of guides and decoder with a trunk of timm.
        pooling: `"max"`, as in FADE's comparison, or `"guided"` for the pooling half of IndexNet and A2U (ResNet only).
        weights: Of the trunk, as in `fadeup.models.weights.load_backbone`.
        dropout: After ASPP, in training; by default 0.5 for ResNet-34, as published, and none for the small network.
        **options: Of the upsampler.

    Raises:
        ValueError: Trunk, upsampler or pooling is unknown, or the upsampler has no pooling half.
        ModuleNotFoundError: timm is missing.

    Source: Dai et al., Learning Affinity-Aware Upsampling for Deep Image Matting, CVPR 2021 (network); Lu et al., FADE,
    ECCV 2022, Table 3; Chen et al., DeepLabv3, 2017 (ASPP).
    """

    def __init__(
        self,
        upsampler: str = "fade",
        *,
        trunk: str = "resnet34",
        channels: int = 32,
        pooling: str = "max",
        weights: str | Path | None = None,
        dropout: float | None = None,
        **options: Any,
    ):
        super().__init__()
        self.in_channels = 4
        check_count("channels", channels)
        own = trunk == "resnet34"
        self.pooling = check_pooling(pooling, upsampler, None if own else trunk)
        if pooling == "guided" and resolve(upsampler)[0] is A2U:
            options["pooling"] = True
        if own:
            self.trunk: nn.Module = ResNet()
            guides, sources, deep, last = (64, 64, 128, 256), (4, 64, 64, 128), 256, 32
            self.laterals = None
            self.aspp = ASPP(deep, guides[-1], 256, (6, 12, 18), 0.5 if dropout is None else dropout)
        else:
            self.trunk, (*maps, deep) = timm_features(trunk, (2, 4, 8, 16), "trunk", ("resnet34",), in_channels=4)
            guides, sources, last = (channels,) * 4, (channels,) * 4, max(1, channels // 2)
            self.laterals = nn.ModuleList(
                conv_norm(count, channels, 3 if level == 0 else 1) for level, count in enumerate((4, *maps))
            )
            self.aspp = ASPP(deep, guides[-1], max(1, 3 * channels // 4), (3, 6), dropout or 0.0)
        conv = conv_norm if own else slim
        self.shortcuts = nn.ModuleList(conv(count, guide) for count, guide in zip(sources, guides, strict=True))
        self.stages = nn.ModuleList(
            nn.Sequential(Residual(width, after, conv), Residual(after, after, conv))
            for after, width in pairwise((last, *guides))
        )
        if own:
            self.head: nn.Module = nn.Sequential(conv_norm(last, 1), nn.Conv2d(1, 1, 3, padding=1, bias=False))
        else:  # a single channel that is normalised takes thousands of steps to find its level
            self.head = nn.Conv2d(last, 1, 3, padding=1)
        start(self)
        if isinstance(self.head, nn.Conv2d):
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.constant_(self.head.bias, 0.5)  # type: ignore[arg-type]
        # Upsamplers last: with one seed all other layers start the same whatever the upsampler draws.
        self.upsamplers = nn.ModuleList(build_upsampler(upsampler, width, width, **options) for width in guides)
        load_backbone(self.trunk, trunk, weights)

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor:
        """Alpha `(B, 1, H, W)`, not clipped to 0–1, of pictures with their trimaps `(B, 4, H, W)`.

        Args:
            image: `(B, 4, H, W)` of any size: RGB as normalised for the trunk, and the trimap over 255 (0, 128/255, 1).
            context: What `context` found in the whole picture, where `image` is a part of it.
        """
        check_map("image", image, 4)
        deep, guides, sources = self.encode(image)
        x = self.aspp(deep, context)
        for stage in reversed(range(len(guides))):
            x = self.upsamplers[stage](x, guides[stage]) + self.shortcuts[stage](sources[stage])
            x = self.stages[stage](x)
        return self.head(x)

    def context(self, image: Tensor) -> Tensor:
        """The mean of the smallest map, `(B, C, 1, 1)`: all that ASPP's global pooling takes from a picture."""
        check_map("image", image, 4)
        return self.encode(image)[0].mean(dim=(2, 3), keepdim=True)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The smallest map, and per level, the largest first, the upsampler's guide and the shortcut's source."""
        if self.laterals is None:
            return self.trunk(image, [self._pooled] * 4 if self.pooling == "max" else self._pools())
        *maps, deep = self.trunk(image)
        guides = [lateral(x) for lateral, x in zip(self.laterals, (image, *maps), strict=True)]
        return deep, guides, guides

    @staticmethod
    def _pooled(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, ceil_mode=True)

    def _pools(self) -> list[Any]:
        return [upsampler.pool for upsampler in self.upsamplers if isinstance(upsampler, IndexNet | A2U)]


class ResNet(nn.Module):
    """ResNet-34 up to its eleventh residual block, with a stem of stride 1 on four channels, pooling where it strides.

    Layers are named as torchvision's are.

    Source: He et al., Deep Residual Learning, CVPR 2016; Dai et al., CVPR 2021.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 64, 7, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before = 64
        for index, (width, depth) in enumerate(RESNET34, start=1):
            blocks = [
                BasicBlock(before if i == 0 else width, width, strided=index > 1 and i == 0) for i in range(depth)
            ]
            self.add_module(f"layer{index}", nn.Sequential(*blocks))
            before = width

    def forward(self, image: Tensor, pools: list[Any]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """As `MattingNet.encode`; `pools` halve the four guides, the largest first."""
        full = F.leaky_relu(self.bn1(self.conv1(image)), SLOPE)
        half = pools[0](full)
        quarter = self.layer1(pools[1](half))  # type: ignore[operator]
        eighth, before_eighth = self._stage(self.layer2, quarter, pools[2])
        deep, before_deep = self._stage(self.layer3, eighth, pools[3])
        return deep, [full, half, before_eighth, before_deep], [image, half, quarter, eighth]

    @staticmethod
    def _stage(blocks: Any, x: Tensor, pool: Any) -> tuple[Tensor, Tensor]:
        first, *others = blocks
        x, guide = first.pooled(x, pool)
        for block in others:
            x = block(x)
        return x, guide


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions; a strided one pools after the first, whose output guides an upsampler."""

    def __init__(self, in_channels: int, out_channels: int, *, strided: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if strided:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Same size and channels."""
        return self._second(F.leaky_relu(self.bn1(self.conv1(x)), SLOPE), x)

    def pooled(self, x: Tensor, pool: Any) -> tuple[Tensor, Tensor]:
        """Half the size, and the map that was pooled."""
        guide = F.leaky_relu(self.bn1(self.conv1(x)), SLOPE)
        return self._second(pool(guide), self.downsample(x) if self.downsample is not None else x), guide

    def _second(self, x: Tensor, identity: Tensor) -> Tensor:
        return F.leaky_relu(self.bn2(self.conv2(x)) + identity, SLOPE)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, separable 3x3 of several dilations, and the picture's mean, side by side."""

    def __init__(
        self, in_channels: int, out_channels: int, width: int, dilations: tuple[int, ...], dropout: float = 0.5
    ):
        super().__init__()
        self.point = conv_norm(in_channels, width, 1)
        self.dilated = nn.ModuleList(separable(in_channels, width, dilation) for dilation in dilations)
        self.pooled = conv_norm(in_channels, width, 1)
        self.fuse = conv_norm((2 + len(dilations)) * width, out_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`(B, out_channels, H, W)`; `context` takes the place of the mean of `x`."""
        mean = x.mean(dim=(2, 3), keepdim=True) if context is None else context.expand(len(x), -1, -1, -1)
        branches = [self.point(x), *(branch(x) for branch in self.dilated)]
        branches.append(self.pooled(mean).expand(-1, -1, *x.shape[-2:]))
        return self.dropout(self.fuse(torch.cat(branches, dim=1)))


class Residual(nn.Module):
    """Two 3x3 convolutions with a 1x1 projection around them where channels change."""

    def __init__(self, in_channels: int, out_channels: int, conv: Any):
        super().__init__()
        self.convs = nn.Sequential(conv(in_channels, out_channels), conv(out_channels, out_channels, linear=True))
        same = in_channels == out_channels
        self.project = nn.Identity() if same else conv_norm(in_channels, out_channels, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """Same size."""
        return F.leaky_relu(self.convs(x) + self.project(x), SLOPE)


def conv_norm(in_channels: int, out_channels: int, kernel_size: int = 3, *, linear: bool = False) -> nn.Sequential:
    """Convolution, BatchNorm and, unless `linear`, leaky ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, *_normed(out_channels, linear))


def separable(in_channels: int, out_channels: int, dilation: int = 1, *, linear: bool = False) -> nn.Sequential:
    """Depthwise 3x3 and pointwise convolution, each with BatchNorm and leaky ReLU, the last one unless `linear`."""
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(
        depthwise, *_normed(in_channels, False), *conv_norm(in_channels, out_channels, 1, linear=linear)
    )


def slim(in_channels: int, out_channels: int, *, linear: bool = False) -> nn.Sequential:
    """As `separable` with nothing between its convolutions, which saves a fifth of a training step on a CPU."""
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
    return nn.Sequential(depthwise, *conv_norm(in_channels, out_channels, 1, linear=linear))


def _normed(channels: int, linear: bool) -> list[nn.Module]:
    norm = nn.BatchNorm2d(channels)
    return [norm] if linear else [norm, nn.LeakyReLU(SLOPE, inplace=True)]


def start(model: nn.Module) -> None:
    """Convolutions from Xavier's normal distribution with the gain of leaky ReLU, as the authors' network starts."""
    gain = nn.init.calculate_gain("leaky_relu", SLOPE)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
