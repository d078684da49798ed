"""Every kind of network, small, for the tests of precision and of parallel training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fadeup.models import Autoencoder, MattingNet, SegFormer, SegNet, segnet

LITE0 = "tf_efficientnet_lite0"
NETWORKS = {
    "autoencoder": (Autoencoder, {"channels": (8, 16)}, 1),
    "segnet": (SegNet, {"num_classes": 3, "upsampler": "fade"}, 3),
    "segnet-timm": (SegNet, {"num_classes": 3, "trunk": LITE0}, 3),  # max_unpool, its default
    "segformer-mit": (SegFormer, {"backbone": "mit_b0", "num_classes": 3, "channels": 16}, 3),
    "segformer-timm": (SegFormer, {"backbone": LITE0, "num_classes": 3, "channels": 16, "full_size": True}, 3),
    "matting": (MattingNet, {}, 4),
    "matting-timm": (MattingNet, {"trunk": LITE0}, 4),
}
"""Class, arguments, channels of the image."""


def build_network(name: str, batch: int = 2, size: tuple[int, int] = (37, 45)) -> tuple[nn.Module, Tensor]:
    """A network without dropout, and a batch of images; VGG-16 has a sixteenth of its widths.

    BatchNorm has seen the images: in evaluation the matting network's values would reach thousands else.
    """
    kind, arguments, channels = NETWORKS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segnet, "VGG16", tuple((width // 16, depth) for width, depth in segnet.VGG16))
        model = kind(**arguments)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0
    image = torch.rand(batch, channels, *size)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.9
    with torch.no_grad():
        model.train()(image)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return model, image
