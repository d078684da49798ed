"""How far two results may lie apart: tolerances come from the reference's own rounding, not from taste."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

# With `pytest -m gpu` the tests of all implementations run on a GPU with this one; in Triton's interpreter they would
# take an hour, so that test_triton.py has its own choice of cases.
ON_A_GPU = pytest.param("triton", marks=pytest.mark.gpu)
FASTER = ["eager", "native", ON_A_GPU]
ALL = ["reference", *FASTER]


def budget(exact: Tensor, low: Tensor) -> float:
    """The reference's own rounding error: its result in a low precision against its result in float64.

    At least one unit in the last place of the largest value, since on tiny inputs the reference may round to the exact
    value by luck, which says nothing of another order of summation.
    """
    if exact.numel() == 0:
        return 0.0
    unit = torch.finfo(low.dtype).eps * exact.abs().max().item()
    return max((low.double() - exact).abs().max().item(), unit)


def assert_within(actual: Tensor, exact: Tensor, tolerance: float) -> None:
    assert actual.shape == exact.shape
    if exact.numel() == 0:
        return
    error = (actual.double() - exact).abs().max().item()
    assert error <= tolerance, f"off by {error:.3g}, more than {tolerance:.3g}"  # NaN fails this too


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` and `new_empty` return with NaN."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill
