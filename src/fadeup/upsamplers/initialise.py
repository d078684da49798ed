"""How the convolutions that make kernels start."""

from __future__ import annotations

import math

from torch import nn

INITS = ("xavier", "small", "centred")


def xavier_(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in every convolution of `module`, as the public code starts."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def small_(content_encoder: nn.Conv2d, *, centred: bool, counted: int) -> None:
    """Weights of standard deviation 1e-3 and biases 0, by which all kernels start near the mean of their window.

    Args:
        content_encoder: The convolution to K*K logits.
        centred: Bias the centre tap by `ln(K*K - 1) / counted`: the softmax then gives it half of the weight.
        counted: How often the bias enters the logits.
    """
    nn.init.normal_(content_encoder.weight, std=1e-3)
    assert content_encoder.bias is not None
    nn.init.zeros_(content_encoder.bias)
    taps = content_encoder.out_channels
    if centred and taps > 1:
        nn.init.constant_(content_encoder.bias[taps // 2], math.log(taps - 1) / counted)
