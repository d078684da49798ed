"""What onnxruntime gives and takes beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fadeup.export.program import checked, first_lines, fixed
from fadeup.models.weights import needed
from fadeup.plug.trace import evaluating
from fadeup.upsamplers import Upsampler

TOLERANCE = 1e-4
"""How far results may lie apart, of values up to 1; of larger ones so large a part of the largest."""
STEP = 32  # networks that take no odd size take multiples of it
INSTALL = "pip install 'fadeup[export]'"


@dataclass(frozen=True)
class Comparison:
    """How far onnxruntime's results are from PyTorch's for inputs of these shapes."""

    shapes: tuple[tuple[int, ...], ...]
    difference: float
    """The largest."""
    largest: float
    """The largest value of PyTorch's results."""

    @property
    def tolerance(self) -> float:
        """How large the difference may be."""
        return TOLERANCE * max(1.0, self.largest)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call."""

    median_ms: float
    q1_ms: float
    q3_ms: float


def open_session(model: str | Path | bytes, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU with PyTorch's number of threads, or another.

    Args:
        model: File, or its content.
        threads: None for as many as PyTorch has.
    """
    onnxruntime = needed_for_onnx("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3  # errors; it warns of every operator that it runs on the CPU for its shape's sake
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def upsampler_inputs(
    upsampler: Upsampler,
    size: tuple[int, int] = (9, 11),
    *,
    batch: int = 2,
    encoder: bool | None = None,
    odd: bool = False,
) -> tuple[Tensor, ...]:
    """Random maps that an upsampler takes.

    Args:
        upsampler: Any.
        size: The decoder's height and width.
        batch: Samples.
        encoder: Whether there is one; None for where the upsampler reads it.
        odd: The encoder is a row and a column short of `scale` times the decoder.
    """
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, upsampler.decoder_channels, *size, generator=generator)]
    if upsampler.reads_encoder if encoder is None else encoder:
        sides = [max(side, upsampler._times(side) - odd) for side in size]
        maps.append(torch.randn(batch, upsampler.encoder_channels, *sides, generator=generator))
    return tuple(maps)


def other_inputs(
    model: nn.Module, example: tuple[Tensor, ...], others: Sequence[Sequence[Tensor]] | None, check: bool
) -> list[tuple[Tensor, ...]]:
    """Inputs of other batches and sizes, odd ones among them where the model takes them."""
    if others is not None:
        return [checked(one) for one in others]
    first = example[0]
    if isinstance(model, Upsampler):
        with_encoder, (height, width) = len(example) > 1, first.shape[2:]
        make = partial(upsampler_inputs, model, encoder=with_encoder)
        return [make((height + 3, width + 5), batch=3, odd=True), make((height + 2, width + 1), batch=1)]
    if len(example) > 1 or first.dim() != 4:
        if not check:
            return []
        raise ValueError(
            f"others must be given for a model of {len(example)} inputs that is no upsampler, got None; give inputs of "
            "other sizes, or check=False"
        )
    height, width = first.shape[2:]
    odd, more = (height + 11 + height % 2, width + 11 + width % 2), (height + STEP, width + 2 * STEP)
    try:
        return [_resized(model, first, 3, odd), _resized(model, first, 1, more)]
    except (ValueError, RuntimeError):  # it takes no odd sizes, and says so in its own way
        return [_resized(model, first, batch, (height + batch * STEP, width + STEP)) for batch in (3, 1)]


def _resized(model: nn.Module, like: Tensor, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """A random map of that size that the model takes."""
    values = torch.randn(batch, like.shape[1], *size, generator=torch.Generator().manual_seed(0))
    x = values.to(like.device, like.dtype)
    _results(model, (x,))
    return (x,)


@torch.no_grad()
def _results(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """PyTorch's results in evaluation mode, one after another."""
    with evaluating(model):
        leaves, _ = pytree.tree_flatten(model(*inputs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _feeds(session: Any, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    return {one.name: x.detach().cpu().numpy() for one, x in zip(session.get_inputs(), inputs, strict=True)}


def compared(model: nn.Module, session: Any, inputs: tuple[Tensor, ...], dynamic: bool) -> Comparison:
    """Both with the same inputs.

    Raises:
        ValueError: onnxruntime fails, or gives other shapes or values.
    """
    shapes = tuple(tuple(x.shape) for x in inputs)
    place = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
    expected = _results(model, inputs)
    try:
        results = [torch.from_numpy(result) for result in session.run(None, _feeds(session, inputs))]
    except Exception as error:  # onnxruntime's have no common class
        raise ValueError(fixed(model, dynamic, f"onnxruntime fails for {place}: {first_lines(error)}")) from error
    difference = largest = 0.0
    for ours, theirs in zip(expected, results, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                fixed(model, dynamic, f"for {place} a result is {tuple(theirs.shape)}, not {tuple(ours.shape)}")
            )
        exact = ours.detach().cpu().double()
        difference = max(difference, (theirs.double() - exact).abs().max().item() if exact.numel() else 0.0)
        largest = max(largest, exact.abs().max().item() if exact.numel() else 0.0)
    found = Comparison(shapes, difference, largest)
    if not difference <= found.tolerance:  # NaN too
        raise ValueError(
            fixed(model, dynamic, f"for {place} a result is off by {difference:.3g}, more than {found.tolerance:.3g}")
        )
    return found


def timed(model: nn.Module, session: Any, inputs: tuple[Tensor, ...], seconds: float) -> dict[str, Timing]:
    """Both in turns, so that a machine that slows down slows both."""
    if not seconds:
        return {}
    from fadeup.bench.run import spread, take_turns

    feeds = _feeds(session, inputs)
    calls: dict[str, Callable[[], object]] = {
        "onnxruntime": lambda: session.run(None, feeds),
        "pytorch": partial(_results, model, inputs),
    }
    _, rounds = take_turns(calls, "pytorch", seconds)
    spreads = {name: spread(times) for name, times in rounds.items()}
    return {name: Timing(*(one[key] for key in ("median_ms", "q1_ms", "q3_ms"))) for name, one in spreads.items()}


def needed_for_onnx(package: str) -> Any:
    """Import a package of the extra `export`.

    Raises:
        ModuleNotFoundError: It is missing; the message says how to install it.
    """
    try:
        return needed(package, "ONNX")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} must be installed for ONNX, got none; {INSTALL}", name=error.name
        ) from error
