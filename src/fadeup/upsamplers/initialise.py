"""How the convolutions that make kernels and gates start."""

from __future__ import annotations

import math

from torch import nn

INITS = ("small", "centred", "xavier")
GATE_BIAS = -2.0
"""Three gates in a row that start half open leave an eighth of the coarsest map; so two thirds of it remain."""


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


def gate_bias_(gate: nn.Conv2d | None, value: float, fusion: str) -> None:
    """Start the gate's bias at `value`.

    Raises:
        ValueError: It is no finite number, or there is no gate.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"gate_bias must be a finite number, got {value!r}")
    if gate is not None and gate.bias is not None:
        nn.init.constant_(gate.bias, value)
    elif value:
        raise ValueError(f"gate_bias must be 0 for fusion={fusion!r}, which has no gate, got {value!r}")
