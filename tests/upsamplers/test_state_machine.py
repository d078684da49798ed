"""Every upsampler through random lives: changed, copied, saved, fed with anything, and always equal to the reference.

A few short lives in each run. With `FADEUP_FUZZ_SECONDS=600` in the environment new ones are drawn for so long, shared
among the upsamplers.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import Tensor, nn

from fadeup import UPSAMPLERS, Upsampler, build_upsampler
from fadeup.kernels import native
from helpers import assert_within, budget

SECONDS = float(os.environ.get("FADEUP_FUZZ_SECONDS", "0"))
SLACK = 4  # times the reference's own rounding, as in test_reassemble.py
ANY_RATIO = ("fade", "fade_lite", "sapa", "nearest", "bilinear")
EQUAL_CHANNELS = ("indexnet", "max_unpool")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CHANNELS = 8


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "channels_last": channels_last,
    "every_second_column": lambda x: torch.stack([x, x], dim=-1).flatten(3)[..., ::2],
    "transposed": lambda x: x.mT.contiguous().mT,
    "some_of_more_channels": lambda x: channels_last(torch.cat([x, x], dim=1))[:, x.shape[1] :],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "one_pixel_repeated": lambda x: x[:, :, :1, :1].expand_as(x),
}
SPOILED: dict[str, Callable[[Tensor], None]] = {
    "ordinary": lambda x: None,
    "zero": lambda x: x.zero_(),
    "large": lambda x: x.mul_(1000),
    "denormal": lambda x: x.mul_(torch.finfo(x.dtype).tiny / 8),
    "nan": lambda x: x[:, -1, -1:, -1].fill_(float("nan")),
    "infinity": lambda x: x[:, 0, 0, -1:].fill_(float("inf")),
    "minus infinity": lambda x: x[:, 0, :, -1:].fill_(-float("inf")),
}
FINITE = ("ordinary", "zero", "denormal")
WRONG: dict[str, Callable[[Tensor, Tensor], tuple]] = {
    "rank": lambda decoder, encoder: (decoder[0], encoder),
    "channels": lambda decoder, encoder: (decoder[:, 1:], encoder),
    "integers": lambda decoder, encoder: (decoder.int(), encoder),
    "batch": lambda decoder, encoder: (decoder, torch.cat([encoder, encoder[:1]])),
    "size": lambda decoder, encoder: (torch.cat([decoder] * 5, dim=2), encoder[:, :, :4]),
    "no pixel": lambda decoder, encoder: (decoder[:, :, :0], encoder),
    "types": lambda decoder, encoder: (
        decoder,
        encoder.to(torch.float64 if decoder.dtype != torch.float64 else torch.float32),
    ),
    "no tensor": lambda decoder, encoder: (decoder.tolist(), encoder),
}


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(12345), b.nan_to_num(12345)) and torch.equal(a.isnan(), b.isnan())


def as_reference(module: Upsampler, dtype: torch.dtype | None = None) -> Upsampler:
    twin = copy.deepcopy(module)
    if hasattr(twin, "impl"):
        twin.impl = "reference"
    return twin if dtype is None else twin.to(dtype)


def results(
    module: nn.Module, maps: tuple[Tensor, Tensor], wanted: tuple[bool, bool], cast: bool
) -> list[Tensor] | str:
    """The output and the gradients of maps and parameters that ask for one; or the words of the ValueError."""
    leaves = [x.detach().requires_grad_(want) for x, want in zip(maps, wanted, strict=True)]
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = module(*leaves)
    except ValueError as error:
        return str(error)
    learned = [x for x in (*leaves, *module.parameters()) if x.requires_grad]
    if not out.requires_grad:
        return [out]
    random = torch.Generator().manual_seed(3)
    cotangent = torch.randn(out.shape, generator=random, dtype=torch.float64).to(out.dtype)
    grads = torch.autograd.grad(out, learned, cotangent, allow_unused=True)
    return [out.detach(), *(x for x in grads if x is not None)]


def largest(tensors: list[Tensor]) -> float:
    return max((x[x.isfinite()].abs().max().item() for x in tensors if x.isfinite().any()), default=0.0)


def assert_agree(actual: Tensor, low: Tensor, exact: Tensor, size: float, saturated: bool) -> None:
    """Within the reference's rounding; where its result is not finite, not finite alike at the same places.

    In float64 it cannot be told from its own rounding, and large logits magnify that: to nine digits. A weight below
    e^-87 is 0 in native, and infinity times it NaN; where kernels are saturated, either will do.

    Of a saturated kernel the gradient is a difference of equal numbers, which the reference may have exactly 0 by luck:
    results of one pass are held to the rounding of `size`, the largest of them.
    """
    assert actual.dtype == low.dtype
    finite, unit = low.isfinite(), torch.finfo(low.dtype).eps * size
    if finite.all() and exact.isfinite().all():
        if low.dtype == torch.float64:
            assert_within(actual, exact, 1e-9 * size)
        else:
            assert_within(actual, exact, SLACK * max(budget(exact, low), unit))
        return
    assert torch.equal(actual.isfinite(), finite)
    assert saturated or same(actual.masked_fill(finite, 0), low.masked_fill(finite, 0))
    error = (actual - low)[finite].abs()
    assert (error <= (1e-9 * size if low.dtype == torch.float64 else 64 * unit)).all()


class Life(RuleBasedStateMachine):
    """One upsampler, and what happens to it."""

    name = ""

    @initialize(encoder_channels=st.sampled_from([CHANNELS, 12]), seed=st.integers(0, 1000))
    def build(self, encoder_channels, seed):
        torch.manual_seed(seed)
        self.encoder_channels = CHANNELS if self.name in EQUAL_CHANNELS else encoder_channels
        self.module = self.fresh()
        for parameter in self.module.parameters():
            if parameter.dim() > 1:  # large enough for the method to differ from plain interpolation
                nn.init.normal_(parameter, std=0.2)
        self.dtype, self.format, self.last = torch.float32, torch.contiguous_format, None

    def fresh(self) -> Upsampler:
        return build_upsampler(self.name, CHANNELS, self.encoder_channels)

    # -- changes --

    @precondition(lambda self: hasattr(self.module, "impl"))
    @rule(impl=st.sampled_from(["auto", "eager", "native"]))
    def choose(self, impl):
        self.module.impl = impl

    @rule(dtype=st.sampled_from(DTYPES))
    def convert(self, dtype):
        self.module.to(dtype)
        self.dtype, self.last = dtype, None

    @rule(training=st.booleans())
    def train(self, training):
        self.module.train(training)

    @rule(last=st.booleans())
    def lay_weights(self, last):
        self.format = torch.channels_last if last else torch.contiguous_format
        self.module.to(memory_format=self.format)

    @rule(frozen=st.integers(0, 255))
    def freeze(self, frozen):
        for i, parameter in enumerate(self.module.parameters()):
            parameter.requires_grad_(not frozen >> i % 8 & 1)

    @rule(way=st.sampled_from(["deepcopy", "pickle", "state_dict", "file"]))
    def replace(self, way):
        """By a copy, which must give the same bits."""
        old = self.module
        if way == "deepcopy":
            self.module = copy.deepcopy(old)
        elif way == "pickle":
            self.module = pickle.loads(pickle.dumps(old))
        else:
            state = old.state_dict()
            if way == "file":
                file = io.BytesIO()
                torch.save(state, file)
                file.seek(0)
                state = torch.load(file, weights_only=True)
            self.module = self.fresh().to(dtype=self.dtype, memory_format=self.format).train(old.training)
            self.module.load_state_dict(state)
            if hasattr(old, "impl"):
                self.module.impl = old.impl
            for ours, theirs in zip(self.module.parameters(), old.parameters(), strict=True):
                ours.requires_grad_(theirs.requires_grad)
        assert repr(self.module) == repr(old)
        maps = self.maps((3, 4), (6, 7), 2, "contiguous", "ordinary", "ordinary")
        twins = [results(copy.deepcopy(module), maps, (True, True), False) for module in (old, self.module)]
        assert all(same(a, b) for a, b in zip(*twins, strict=True))

    # -- calls --

    def maps(self, size, out_size, batch, layout, decoder_values, encoder_values) -> tuple[Tensor, Tensor]:
        decoder = torch.randn(batch, CHANNELS, *size).to(self.dtype)
        encoder = torch.randn(batch, self.encoder_channels, *out_size).to(self.dtype)
        for x, values in ((decoder, decoder_values), (encoder, encoder_values)):
            SPOILED[values](x)
        return LAYOUTS[layout](decoder), LAYOUTS[layout](encoder)

    def sizes(self, size: tuple[int, int], more: tuple[int, int]) -> tuple[int, int]:
        if self.name in ANY_RATIO:
            return size[0] + more[0], size[1] + more[1]
        return 2 * size[0] - more[0] % 2, 2 * size[1] - more[1] % 2

    @rule(
        size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
        batch=st.sampled_from([2, 1, 3, 0]),
        layout=st.sampled_from(list(LAYOUTS)),
        values=st.tuples(st.sampled_from(list(SPOILED)), st.sampled_from(list(SPOILED))),
        wanted=st.tuples(st.booleans(), st.booleans()),
        cast=st.booleans(),
    )
    def call(self, size, more, batch, layout, values, wanted, cast):
        cast = cast and self.dtype == torch.float32
        maps = self.maps(size, self.sizes(size, more), batch, layout, *values)
        before = [x.clone() for x in maps]
        reference = as_reference(self.module)
        exact = results(as_reference(self.module, torch.float64), tuple(x.double() for x in maps), wanted, False)
        low, actual = (results(module, maps, wanted, cast) for module in (reference, self.module))
        assert all(same(x, old) for x, old in zip(maps, before, strict=True))
        for ours, theirs in zip(self.module.buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        if isinstance(low, str):
            assert actual == low
            return
        assert [x.shape for x in actual] == [x.shape for x in low]
        assert actual[0].shape == (batch, CHANNELS, *maps[1].shape[2:])
        assert actual[0].is_contiguous(memory_format=native.memory_format(maps[0]))
        if values[0] in FINITE and values[1] in FINITE and not self.has_lost_range():
            assert actual[0].isfinite().all()
        size = largest(low[1:])
        for i, (ours, rounded, wide) in enumerate(
            zip(actual, low, low if isinstance(exact, str) else exact, strict=True)
        ):
            assert_agree(ours, rounded, wide.double(), size if i else largest(low[:1]), "large" in values)
        self.last = maps

    def has_lost_range(self) -> bool:
        """Whether a batch that was not finite has spoiled the running statistics."""
        return not all(x.isfinite().all() for x in self.module.buffers())

    @rule(how=st.sampled_from(list(WRONG)))
    def call_wrongly(self, how):
        state = copy.deepcopy(self.module.state_dict())
        decoder, encoder = self.maps((3, 4), (6, 7), 2, "contiguous", "ordinary", "ordinary")
        with pytest.raises(ValueError, match=" must be "):
            self.module(*WRONG[how](decoder, encoder))
        assert all(same(x, state[key]) for key, x in self.module.state_dict().items())

    @precondition(lambda self: self.last is not None)
    @rule()
    def call_again(self):
        twins = [results(copy.deepcopy(self.module), self.last, (True, True), False) for _ in range(2)]
        if isinstance(twins[0], list):
            assert all(same(a, b) for a, b in zip(*twins, strict=True))


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_whatever_happens_to_an_upsampler_it_agrees_with_the_reference(name):
    life = type("Life", (Life,), {"name": name})
    # Not shrunk: that takes minutes, and ten steps can be read.
    short = settings(max_examples=10, stateful_step_count=10, deadline=None, database=None, phases=[Phase.generate])
    run_state_machine_as_test(life, settings=short)
    until = time.monotonic() + SECONDS / len(UPSAMPLERS)
    long = settings(short, max_examples=20, stateful_step_count=25, derandomize=False)
    while time.monotonic() < until:
        run_state_machine_as_test(life, settings=long)
