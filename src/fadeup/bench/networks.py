"""Whole networks beside those of others: SegFormer with our upsamplers, and transformers' own, in turns."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fadeup.bench.case import DisagreementError
from fadeup.bench.run import BusyError, Settings, Tell, ratio, spread, take_turns, timed_quietly
from fadeup.bench.targets import Target, slower, target_row
from fadeup.models.segformer import SegFormer, build_backbone
from fadeup.models.weights import needed

OWN = "transformers"
UPSAMPLERS = ("bilinear", "fade", "fade_lite")
TOLERANCE = 1e-4  # of the largest logit
TARGET = Target("SegFormer, FADE / transformers' bilinear", 1, False, slower("networks", "fade"))


@dataclass(frozen=True)
class Network:
    """A SegFormer over an image of `side` x `side`, batch 1, float32; `backbone` is `"mit_b0"` to `"mit_b5"`."""

    backbone: str = "mit_b1"
    classes: int = 150
    side: int = 512

    def __str__(self) -> str:
        return f"SegFormer, {self.backbone}, {self.classes} classes, {self.side}²"


def run_networks(settings: Settings, tell: Tell = lambda text: None, network: Network | None = None) -> dict[str, Any]:
    """Measure the forward passes in `eval()` without gradients. The result is plain data, as that of `run_case`.

    `ratios` are times over those of transformers' network; the row in `targets` has no value where that is refused.

    Raises:
        ModuleNotFoundError: transformers is missing.
    """
    network, version = network or Network(), needed("transformers", "--networks").__version__
    result: dict[str, Any] = {"network": asdict(network), "transformers": version, "refused": None, "busy": []}
    tell(f"{network}: building")
    models, shape = build(network), (1, 3, network.side, network.side)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        tell(f"{network}: checking")
        result["checked"] = check(network, models, image)
        measure = partial(_timed, models, image, settings.seconds)
        measured, busy = timed_quietly(str(network), measure, settings, lambda text: tell(f"{network}: {text}"))
        result |= measured | {"busy": [str(one) for one in busy or ()]}
    except (DisagreementError, BusyError) as error:
        result["refused"] = str(error)
    return result | {"targets": [target_row(TARGET, [{"networks": result}])]}


def build(network: Network) -> dict[str, nn.Module]:
    """The network of transformers, and ours with the same weights, loaded from a checkpoint as users do.

    They are copied then: loaded weights lie in memory as in the file, without the alignment of newly made ones.
    """
    with torch.device("meta"):
        config: Any = build_backbone(network.backbone)[0].config
    config.num_labels = network.classes
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(prefix="fadeup-bench-") as folder:
        torch.manual_seed(0)
        theirs = needed("transformers", "--networks").SegformerForSemanticSegmentation(config)
        models: dict[str, nn.Module] = {OWN: _shaken(theirs)}
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            theirs.save_pretrained(folder)
        for upsampler in UPSAMPLERS:
            models[upsampler] = model = SegFormer(network.backbone, network.classes, upsampler)
            model.load_state_dict(SegFormer.from_pretrained(folder, upsampler).state_dict())
            _shaken(model.head.upsamplers)
    return {name: model.eval() for name, model in models.items()}


def _shaken(module: nn.Module) -> nn.Module:
    """With no weight, bias or statistic at 0 or 1, so that one left out shows."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.add_(0.05 * torch.randn_like(value))
    return module


@torch.no_grad()
def check(network: Network, models: Mapping[str, Any], image: Tensor) -> dict[str, float]:
    """How far each of ours is off, as a share of what it may be.

    Bilinear must give transformers' logits, the others those of their layers one after another: without gradients
    SegFormer takes a faster path.

    Raises:
        DisagreementError: One is further off.
    """
    shares = {}
    for name in UPSAMPLERS:
        model, origin = models[name], OWN if name == "bilinear" else "its layers one after another"
        expected = models[OWN](image).logits if name == "bilinear" else model.head(model.features(image))
        error, limit = (model(image) - expected).abs().max().item(), TOLERANCE * expected.abs().max().item()
        if not error <= limit:  # NaN too
            raise DisagreementError(f"{network}: {name} is off by {error:.3g} from {origin}, {limit:.3g} is allowed")
        shares[name] = error / limit
    return shares


@torch.no_grad()
def _timed(models: Mapping[str, nn.Module], image: Tensor, seconds: float) -> dict[str, Any]:
    calls = {name: partial(model, image) for name, model in models.items()}
    first, rounds = take_turns(calls, OWN, seconds)
    sizes = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    peers = {n: spread(rounds[n]) | {"first_ms": first[n] * 1e3, "parameters": sizes[n]} for n in models}
    return {"peers": peers, "ratios": {name: ratio(rounds[name], rounds[OWN]) for name in UPSAMPLERS}}
