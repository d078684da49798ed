"""What a benchmark runs: an operator at a size, type and layout, by itself and by its peers; and the check of both."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.bench import gpu
from fadeup.functional import check_choice, check_count, reassemble
from fadeup.upsamplers import ALIASES, UPSAMPLERS, build_upsampler, resolve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DEVICES = {"cpu": torch.device("cpu"), "cuda": torch.device("cuda")}
PASSES = ("forward", "forward+backward", "backward")
OPERATORS = (*UPSAMPLERS, *ALIASES, "reassemble")
FUSED = {"cpu": "native", "cuda": "triton"}
IMPLEMENTATIONS = {
    **{"native": "native", "triton": "triton"},
    **{"unfold": "reference", "unfold-compiled": "reference", "eager": "eager"},
}
PEERS = {
    "cpu": ("native", "unfold", "unfold-compiled", "eager", "bilinear", "dysample"),
    "cuda": ("triton", "unfold", "unfold-compiled", "eager", "bilinear", "dysample", "mmcv"),
}
TAPS = 25
CHECK_BYTES = 4 << 30
CHECK_SIDE = 32
BUDGET = 4.0


class DisagreementError(RuntimeError):
    """A peer that should give what the reference gives does not."""


@dataclass(frozen=True)
class Case:
    """An operator over `batch` decoder maps of `channels` x `side` x `side`; see `fadeup bench --help`.

    Raises:
        ValueError: A name is unknown, a number out of range, or the operator does not take them together.
    """

    operator: str
    channels: int = 256
    side: int = 64
    scale: int = 2
    dtype: str = "float32"
    layout: str = "channels_last"
    passes: str = "forward"
    batch: int = 1
    device: str = "cpu"

    def __post_init__(self):
        for name in ("channels", "side", "scale", "batch"):
            check_count(name, getattr(self, name))
        check_choice("dtype", self.dtype, tuple(DTYPES))
        check_choice("layout", self.layout, tuple(LAYOUTS))
        check_choice("pass", self.passes, PASSES)
        check_choice("device", self.device, tuple(DEVICES))
        if self.operator == "reassemble":
            return
        try:
            resolve(self.operator)
        except ValueError as error:
            raise ValueError(str(error).replace("upsampler must be one of", "operator must be reassemble,")) from None
        with torch.device("meta"):
            self.build()

    @property
    def out_side(self) -> int:
        """Height and width of the result."""
        return self.side * self.scale

    @property
    def has_implementations(self) -> bool:
        """Whether the operator can be had in several implementations; the others are plain PyTorch."""
        if self.operator in ("reassemble", "nearest"):  # nearest has them for its fusion, which has a name of its own
            return self.operator == "reassemble"
        return "impl" in inspect.signature(resolve(self.operator)[0]).parameters

    @property
    def own(self) -> str:
        """What the operator's own time is called, to which its peers are compared."""
        return FUSED[self.device] if self.has_implementations else "plain"

    def build(self, impl: str = "auto") -> nn.Module:
        """The operator as a module."""
        options: dict[str, Any] = {"impl": impl} if self.has_implementations else {}
        if self.operator == "dysample":
            options["groups"] = math.gcd(4, self.channels)
        return build_upsampler(self.operator, self.channels, scale=self.scale, **options)

    def window_bytes(self) -> int:
        """Size of the unfolded windows in float64, which decides where the reference can be run."""
        with torch.device("meta"):
            taps = TAPS if self.operator == "reassemble" else getattr(self.build(), "kernel_size", 1) ** 2
        return taps * self.batch * self.channels * self.out_side**2 * 8

    def __str__(self) -> str:
        size = f"C = {self.channels}, {self.side}² → {self.out_side}²"
        return f"{self.operator}, {size}, {self.dtype}, {self.layout}, {self.passes}{unusual_text(asdict(self))}"


def unusual_text(case: Mapping[str, Any]) -> str:
    """Batch and device of a case where they are not 1 and the CPU, to be put behind its other properties."""
    batch = f", batch {case['batch']}" if case["batch"] != 1 else ""
    return batch + (f", {case['device']}" if case["device"] != "cpu" else "")


@dataclass(frozen=True)
class Work:
    """A function, what goes into it, what gradients are taken of, and the gradient of its result."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    wanted: dict[str, Tensor]
    grad: Tensor | None

    def call(self, passes: str) -> Callable[[], Sequence[Tensor | None]]:
        """The call that is timed: it gives the result, or the gradients."""
        if self.grad is None:
            return lambda: [self.function(*self.inputs)]
        if passes == "forward+backward":
            return lambda: self._gradients(self.function(*self.inputs), False)
        if self.function is _fused:
            arguments = (self.grad, *self.inputs, [True] * 5)
            return lambda: torch.ops.fadeup.reassemble_backward(*arguments)
        with torch.enable_grad():
            out = self.function(*self.inputs)
        return lambda: self._gradients(out, True)

    def held_bytes(self) -> int:
        """What is there before the call: the inputs, and the gradient of the result."""
        return sum(x.nbytes for x in self.inputs) + (0 if self.grad is None else self.grad.nbytes)

    def _gradients(self, out: Tensor, keep: bool) -> Sequence[Tensor | None]:
        wanted = list(self.wanted.values())
        return torch.autograd.grad(out, wanted, self.grad, retain_graph=keep, allow_unused=True)


def load_mmcv_carafe() -> Any:
    """The CARAFE of mmcv, with the convolutions that predict its kernels.

    Raises:
        ImportError: There is no mmcv, or it is without its compiled operators.
    """
    return importlib.import_module("mmcv.ops").CARAFEPack


def default_peers(device: str) -> tuple[str, ...]:
    """All peers on a device but mmcv where that is not there, and on the CPU `unfold-compiled`, minutes to compile."""
    if device == "cpu":
        return tuple(name for name in PEERS["cpu"] if name != "unfold-compiled")
    with suppress(ImportError):
        load_mmcv_carafe()
        return PEERS["cuda"]
    return tuple(name for name in PEERS["cuda"] if name != "mmcv")


def _check_peer(name: str, device: str) -> None:
    if name == "mmcv" and device == "cpu":
        names = ", ".join(map(repr, PEERS["cpu"]))
        raise ValueError(
            f"peers must be one of {names} on the CPU, got 'mmcv', whose CARAFE is for CUDA only: use --device cuda"
        )
    check_choice("peers", name, PEERS[device])
    if name == "mmcv":
        try:
            load_mmcv_carafe()
        except ImportError as error:
            raise ValueError(
                f"peers must be without mmcv here, got 'mmcv', whose operators cannot be imported ({error}); install "
                f"mmcv 2 with operators compiled for torch {torch.__version__}: pip install openmim && mim install mmcv"
            ) from error


def _is_missing(case: Case, name: str) -> bool:
    """Whether the operator does not have that peer."""
    if name == "mmcv":
        return case.operator != "carafe" or case.dtype == "bfloat16"  # for which mmcv's kernels are not compiled
    return name in IMPLEMENTATIONS and not case.has_implementations


def peers_of(case: Case, names: Iterable[str]) -> list[str]:
    """The operator itself and those of the named peers that it has; in half precision also their times in float32.

    Raises:
        ValueError: A name is unknown on the case's device, or mmcv is named and cannot be imported.
    """
    chosen = [case.own]
    for name in names:
        _check_peer(name, case.device)
        needs_graph = name == "unfold-compiled" and case.passes == "backward"  # frees it, whatever is asked for
        if name not in chosen and not _is_missing(case, name) and not needs_graph:
            chosen.append(name)
    if case.dtype != "float32":
        chosen += [f"{name}-f32" for name in chosen if name in (*FUSED.values(), "bilinear")]
    return chosen


def prepare(case: Case, peer: str, *, wide: bool = False) -> Work:
    """What a peer runs: the same values for every peer, in float64 where `wide`."""
    if peer.endswith("-f32"):
        return prepare(replace(case, dtype="float32"), peer.removesuffix("-f32"))
    if peer == "bilinear":
        case = replace(case, operator="bilinear", layout="contiguous")
    elif peer == "dysample":
        case = replace(case, operator="dysample")
    elif peer == "mmcv":  # its kernels read contiguous maps
        case = replace(case, layout="contiguous")
    function, parameters, shapes = _operator(case, peer, wide)
    inputs = {name: _values(case, shape, seed, wide) for seed, (name, shape) in enumerate(shapes.items())}
    if case.passes == "forward":
        return Work(function, tuple(inputs.values()), {}, None)
    for x in inputs.values():
        x.requires_grad_()
    wanted = inputs | {name: x for name, x in parameters.items() if x.requires_grad}
    out_shape = (case.batch, case.channels, case.out_side, case.out_side)
    return Work(function, tuple(inputs.values()), wanted, _values(case, out_shape, 99, wide))


Operator = tuple[Callable[..., Tensor], dict[str, Tensor], dict[str, tuple[int, ...]]]


def _operator(case: Case, peer: str, wide: bool) -> Operator:
    """The function, its parameters, and the shapes of its inputs."""
    batch, low, high = case.batch, (case.side, case.side), (case.out_side, case.out_side)
    decoder, encoder = {"decoder": (batch, case.channels, *low)}, {"encoder": (batch, case.channels, *high)}
    if case.operator == "bilinear":
        return lambda x: F.interpolate(x, high, mode="bilinear", align_corners=False), {}, decoder
    if case.operator == "reassemble":
        logits = {"logits": (batch, TAPS, *high), "coarse_logits": (batch, TAPS, *low)}
        function = _fused if peer == case.own else _unfused(IMPLEMENTATIONS[peer])
        shapes, parameters = decoder | logits | encoder | {"gate_logits": (batch, 1, *low)}, {}
    else:
        function = _module(case, peer, wide)
        parameters = dict(function.named_parameters())
        shapes = decoder | (encoder if getattr(function, "reads_encoder", False) else {})  # mmcv's does not say
    if peer == "unfold-compiled":
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it says that there is no GPU
        function = torch.compile(function, dynamic=False)
    return function, parameters, shapes  # type: ignore[return-value]


def _fused(*maps: Tensor) -> Tensor:
    """The fused kernel alone, without the checks of the public function."""
    return torch.ops.fadeup.reassemble(*maps)


def _unfused(impl: str) -> Callable[..., Tensor]:
    def function(decoder: Tensor, logits: Tensor, coarse: Tensor, encoder: Tensor, gate: Tensor) -> Tensor:
        return reassemble(decoder, logits, coarse_logits=coarse, encoder=encoder, gate_logits=gate, impl=impl)

    return function


def _module(case: Case, peer: str, wide: bool) -> Any:
    """The upsampler, with weights that are the same for every peer and nowhere near zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):  # the same on every device
        torch.manual_seed(0)
        module = _build(case, peer).eval()
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    module = module.to(DEVICES[case.device], DTYPES[case.dtype])
    return module.double() if wide else module.to(memory_format=LAYOUTS[case.layout])  # type: ignore[call-overload]


def _build(case: Case, peer: str) -> nn.Module:
    if peer == "mmcv":
        sizes = {"up_kernel": 5, "up_group": 1, "encoder_kernel": 3, "encoder_dilation": 1, "compressed_channels": 64}
        return load_mmcv_carafe()(case.channels, case.scale, **sizes)
    return case.build(IMPLEMENTATIONS.get(peer, "auto"))


def _values(case: Case, shape: tuple[int, ...], seed: int, wide: bool) -> Tensor:
    """Made on the CPU, so that they are the same on every device."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(DTYPES[case.dtype])
    values = values.double() if wide else values
    return values.contiguous(memory_format=LAYOUTS[case.layout]).to(DEVICES[case.device])


def run_once(case: Case, work: Work) -> dict[str, Tensor]:
    """The result or the gradients of a call, by name."""
    with torch.set_grad_enabled(case.passes == "forward+backward"):
        results = work.call(case.passes)()
    names = work.wanted or ("the output",)
    described = (f"the gradient of {name}" if work.wanted else name for name in names)
    return {name: x for name, x in zip(described, results, strict=True) if x is not None}


def checked_side(case: Case) -> int:
    """The decoder's side at which the reference can be run in float64 within 4 GB: the case's, or at most 32."""
    copies = 2 if case.passes == "forward" else 3  # of the windows, as measured
    return case.side if copies * case.window_bytes() <= CHECK_BYTES else min(case.side, CHECK_SIDE)


def check(case: Case, peers: Iterable[str]) -> dict[str, float]:
    """How far each implementation is from the reference, as a share of what it may be off.

    The reference in float64 is exact; its own error in the case's type, and at least one unit in the last place of the
    largest value, is what rounding costs. Four times that is allowed. On a GPU products are exact meanwhile.

    Raises:
        DisagreementError: One is further off.
    """
    checked = [peer for peer in peers if peer in (*FUSED.values(), "eager", "unfold-compiled")]
    case = replace(case, side=checked_side(case))
    if not checked or not case.has_implementations:
        return {}
    with gpu.full_precision() if case.device == "cuda" else nullcontext():
        exact = run_once(case, prepare(case, "unfold", wide=True))
        low = run_once(case, prepare(case, "unfold"))
        limits = {name: BUDGET * _rounding(exact[name], low[name]) for name in exact}
        return {peer: _compare(case, peer, exact, limits) for peer in checked}


def _rounding(exact: Tensor, low: Tensor) -> float:
    unit = torch.finfo(low.dtype).eps * exact.abs().max().item()
    return max((low.double() - exact).abs().max().item(), unit)


def _compare(case: Case, peer: str, exact: dict[str, Tensor], limits: dict[str, float]) -> float:
    actual, worst = run_once(case, prepare(case, peer)), 0.0
    for name, limit in limits.items():
        if name not in actual or actual[name].shape != exact[name].shape:
            raise DisagreementError(f"{case}: {peer} does not give {name} of the shape that the reference gives")
        error = (actual[name].double() - exact[name]).abs().max().item()
        if not error <= limit:  # NaN too
            raise DisagreementError(
                f"{case}: {name} by {peer} is off by {error:.3g} from the reference in float64, where rounding in "
                f"{case.dtype} allows {limit:.3g}"
            )
        worst = max(worst, error / limit if limit else 0.0)
    return worst


def moved_bytes(case: Case, work: Work) -> int:
    """Bytes of everything that goes in and comes out, once each: inputs, result, and their gradients with a backward.

    Parameters are left out.
    """
    inputs = sum(x.nbytes for x in work.inputs)
    result = case.batch * case.channels * case.out_side**2 * DTYPES[case.dtype].itemsize
    results = {"forward": 1, "backward": 1, "forward+backward": 2}[case.passes]
    return (1 if case.passes == "forward" else 2) * inputs + results * result


def floor_work(case: Case, work: Work) -> tuple[int, int]:
    """Bytes and multiply–accumulates that `reassemble` cannot do without: K² per output value and 2 for the gate.

    The backward has twice as many, and both passes together read and write what each of them does.
    """
    outputs = case.batch * case.channels * case.out_side**2
    forward, passes = (TAPS + 2) * outputs, {"forward": 1, "backward": 2, "forward+backward": 3}[case.passes]
    if case.passes != "forward+backward":
        return moved_bytes(case, work), passes * forward
    alone = [moved_bytes(replace(case, passes=name), work) for name in ("forward", "backward")]
    return sum(alone), passes * forward
