"""`torch.export` of a model as it is in evaluation, with every size left open."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fadeup.plug.trace import evaluating


def export_program(model: nn.Module, example: Sequence[Tensor], *, dynamic: bool = True) -> ExportedProgram:
    """`torch.export` of a model in evaluation mode, by default for every batch, height and width.

    Args:
        model: Takes tensors, gives tensors. It is left as it was.
        example: Its inputs. The exporter takes a size of 1 for a constant, so that a batch of 1 is doubled.
        dynamic: Leave open the first axis of every input, and height and width of maps `(B, C, H, W)`.

    Raises:
        ValueError: An example does not fit, or the model computes with a size in a way that fixes it.
    """
    inputs = checked(example)
    if dynamic:
        _check_open(inputs)
        if all(len(x) == 1 for x in inputs):
            inputs = tuple(torch.cat([x, x]) for x in inputs)
    axes = tuple(dict.fromkeys(_open_axes(x), Dim.DYNAMIC) for x in inputs) if dynamic else None
    with as_exported(model), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, of which no user can do anything
        model(*inputs)  # an error of the model itself is told as such
        try:
            return torch.export.export(model, inputs, dynamic_shapes=axes, strict=False)
        except Exception as error:  # its errors have no common class
            raise ValueError(fixed(model, dynamic, first_lines(error))) from error


class SameConvolution(nn.Module):
    """timm's `Conv2dSame`, of the same weights and values, padded so that its size stays a short formula.

        out = ceil(in / stride),    padded = (out - 1) * stride + (kernel - 1) * dilation + 1

    Its own padding, `max((ceil(in / stride) - 1) * stride + ... - in, 0)`, doubles the formula of the size at every
    stride, and the exporter of five of them did not come to an end in 18 minutes.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_out, ceil(H / stride), ceil(W / stride))`."""
        conv = self.conv
        for axis in (2, 3):
            stride, reach = conv.stride[axis - 2], _reach(conv, axis)
            side = x.shape[axis]
            length = ((side + stride - 1) // stride - 1) * stride + reach + 1
            padded = F.pad(x, (0, 0, reach, reach) if axis == 2 else (reach, reach))
            x = padded.narrow(axis, reach - (length - side) // 2, length)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _reach(conv: nn.Conv2d, axis: int) -> int:
    return (conv.kernel_size[axis - 2] - 1) * conv.dilation[axis - 2]


@contextmanager
def as_exported(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, with `SameConvolution` for timm's; as before afterwards."""
    replaced = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ == "Conv2dSame" and all(_reach(child, a) + 1 >= child.stride[a - 2] for a in (2, 3))  # type: ignore[arg-type, index]
    ]
    with evaluating(model):
        try:
            for parent, name, child in replaced:
                parent._modules[name] = SameConvolution(child)  # type: ignore[arg-type]
            yield
        finally:
            for parent, name, child in replaced:
                parent._modules[name] = child


def checked(example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs as a tuple.

    Raises:
        ValueError: They are no tensors, or floats of another precision.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        got = ", ".join(type(x).__name__ for x in inputs) or "none"
        raise ValueError(f"example must be a tuple of tensors, the model's inputs, got {got}")
    for x in inputs:
        if x.is_floating_point() and x.dtype != torch.float32:
            raise ValueError(f"example must be float32, got {x.dtype}; export a model in float32: model.float()")
    return inputs


def _open_axes(x: Tensor) -> tuple[int, ...]:
    return (0, 2, 3) if x.dim() == 4 else (0,) * (x.dim() > 0)


def _check_open(inputs: Sequence[Tensor]) -> None:
    for x in inputs:
        if any(x.shape[axis] < 2 for axis in _open_axes(x) if axis):
            raise ValueError(
                f"example must be at least 2 x 2 in height and width, got {tuple(x.shape)}; "
                "the exporter takes a size of 1 for a constant"
            )


def first_lines(error: Exception) -> str:
    """The beginning of a message, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def fixed(model: nn.Module, dynamic: bool, reason: str) -> str:
    """What to say of a model that cannot be exported so."""
    name = type(model).__name__
    if not dynamic:
        return f"model must be one that torch.export can trace, got {name}: {reason}"
    return (
        f"model must take every batch, height and width, got {name}, which fixes them: {reason}; "
        "use dynamic=False (fadeup export --fixed) for the example's sizes alone"
    )
