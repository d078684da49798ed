"""A trained U-Net of segmentation_models.pytorch, before and after `fadeup.upgrade`, and after a short fine-tuning.

python scripts/finetune_upgraded.py --out runs/upgraded

Trains the U-Net on the shipped land-cover tiles once a seed, then goes on from there, with SGD and with AdamW, with the
network as it is and with upsamplers in it. Rows go to results.jsonl as they are finished; a run that was interrupted
goes on. `--gradients` prints, in place of that, how large the gradients are that upsamplers get at the start.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fadeup
from fadeup.checkpoint import load_weights, save_weights
from fadeup.engine import evaluate, train
from fadeup.models import load_backbone
from fadeup.plug import Blend
from fadeup.recipes.landcover import LandCover
from fadeup.recipes.optimizer import build_optimizer

ENCODER = "tf_efficientnet_lite0"
RATES = {"adamw": (3e-4, 10.0), "sgd": (1e-2, 100.0)}
"""Learning rate, and by how much that of the blends' scalar is larger: it has to move by about 1, the others by little.
The encoder's is a tenth.
"""
SWAPS = {
    "unchanged": None,
    "FADE, blended": {"init": "host"},
    "FADE, blended, upsamplers alone": {"init": "host", "trainable": "upsamplers"},
    "FADE from the centre, blended": {"upsampler": "fade,init=centred", "init": "host"},
    "CARAFE, blended": {"upsampler": "carafe", "init": "host"},
    "FADE, replaced": {},
    "FADE, saturated": {"gate_bias": -12.0},
}


@dataclass(frozen=True)
class UNet(LandCover):
    """The U-Net; `swap` is a key of SWAPS, and `start` the weights before the swap."""

    start: str = ""
    swap: str = "unchanged"
    iterations: int = 400
    learning_rate: float = 3e-4

    def model(self, upsampler: str) -> nn.Module:
        import segmentation_models_pytorch as smp

        widths = (96, 64, 48, 32, 16)
        model = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, decoder_channels=widths, classes=len(self.about[0]))
        if not self.start:
            load_backbone(model.encoder.model, ENCODER, "imagenet")
            return model
        load_weights(Path(self.start), model)
        swap(model, self.swap)
        return model

    def optimizer(self, model: nn.Module, steps: int) -> Any:
        blends = {p for module in model.modules() if isinstance(module, Blend) for p in module.parameters()}
        encoder = set(model.encoder.parameters()) - set(fadeup.plug.added_parameters(model))
        groups = [
            (0.1, [p for p in model.parameters() if p in encoder and p.requires_grad]),
            (1.0, [p for p in model.parameters() if p not in encoder | blends and p.requires_grad]),
            (RATES[self.algorithm][1], list(blends)),
        ]
        described = [
            {"params": params, "lr": factor * self.learning_rate, "weight_decay": 0.0 if factor > 1 else 0.01}
            for factor, params in groups
            if params
        ]
        optimizer = build_optimizer(self.algorithm, described, self.learning_rate)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))


def swap(model: nn.Module, name: str) -> None:
    """Upgrade the network as the row says."""
    options = SWAPS[name]
    if options is None:
        return
    fadeup.upgrade(model, **{"upsampler": "fade", "example_inputs": torch.rand(2, 3, 64, 96), **options})
    if name == "FADE, saturated":
        saturate(model)


def saturate(model: nn.Module, bias: float = 6.0) -> None:
    """Make FADE imitate nearest: its kernels on the centre tap, its gate shut.

    The bias is counted twice: the other taps have exp(-12), 6e-6, of the centre's weight.
    """
    for module in model.modules():
        if isinstance(module, fadeup.UPSAMPLERS["fade"]):
            with torch.no_grad():
                content = module.kernels.content_encoder
                content.weight.zero_()
                content.bias[content.out_channels // 2] = bias
                module.fusion.gate.weight.zero_()


def score(recipe: UNet, model: nn.Module, data: Any) -> dict[str, float]:
    statistics = evaluate(recipe, model, data.test)
    return {metric.name: round(metric.score(statistics[metric.name]), 3) for metric in recipe.metrics}


def trained(out: Path, seed: int, steps: int) -> Path:
    """The file of the U-Net that all rows of a seed start from."""
    file = out / f"unet-{seed}.safetensors"
    if not file.exists():
        recipe = UNet(iterations=steps)
        data = recipe.data()
        network = train(recipe, "host", data, seed=seed, checkpoint=out / f"unet-{seed}.pt").model
        save_weights(file, network, {"seed": seed, "steps": steps, "scores": score(recipe, network.eval(), data)})
    return file


def run(out: Path, seed: int, algorithm: str, name: str, start: Path, steps: int) -> dict[str, Any]:
    recipe = replace(
        UNet(start=str(start), swap=name, iterations=steps), algorithm=algorithm, learning_rate=RATES[algorithm][0]
    )
    data = recipe.data()
    before = score(recipe, recipe.model("").eval(), data)
    checkpoint = out / f"{seed}-{algorithm}-{name.replace(', ', '-').replace(' ', '-')}.pt"
    result = train(recipe, "host", data, seed=seed, checkpoint=checkpoint)
    blends = [round(m.s.item(), 3) for m in result.model.modules() if isinstance(m, Blend)]
    after = score(recipe, result.model.eval(), data)
    return {
        "seed": seed,
        "algorithm": algorithm,
        "row": name,
        "before": before,
        "after": after,
        "s": blends,
        "loss": round(float(result.losses[-20:].mean()), 4),
        "seconds": round(result.seconds),
    }


def gradients(start: Path) -> None:
    """Norms of the gradient that the first and second step give the kernels of FADE, by how it starts."""
    recipe = UNet(start=str(start))
    data = recipe.data()
    torch.manual_seed(0)
    samples = [recipe.augment(data.train[i]) for i in range(8)]
    images, targets = (torch.stack([sample[part] for sample in samples]) for part in (0, 1))
    for name in ("FADE, replaced", "FADE, blended", "FADE, saturated"):
        model = replace(recipe, swap=name).model("").train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for step in (1, 2):
            optimizer.zero_grad()
            loss = recipe.loss(model(images), targets)
            loss.backward()
            norms = {"content_encoder.weight": 0.0, "gate.weight": 0.0, "blend.s": 0.0}
            for key, parameter in model.named_parameters():
                for end in norms:
                    if key.endswith(end) and ".fadeup." in key:
                        norms[end] += parameter.grad.square().sum().item()
            shown = ", ".join(f"{end} {math.sqrt(norm):.3g}" for end, norm in norms.items())
            print(f"{name}, step {step}: loss {loss.item():.4f}; gradient of {shown}", flush=True)
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/upgraded"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="*", default=list(SWAPS))
    parser.add_argument("--first", type=int, default=400, help="steps of the U-Net")
    parser.add_argument("--steps", type=int, default=150, help="steps of the fine-tuning")
    parser.add_argument("--gradients", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["seed"], row["algorithm"], row["row"]) for row in rows}
    for seed in arguments.seeds:
        start = trained(arguments.out, seed, arguments.first)
        if arguments.gradients:
            gradients(start)
            continue
        for algorithm in RATES:
            for name in arguments.rows:
                if (seed, algorithm, name) not in done:
                    row = run(arguments.out, seed, algorithm, name, start, arguments.steps)
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)


if __name__ == "__main__":
    main()
