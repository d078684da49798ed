"""Ten thousand steps in half precision: whether a NaN appears, and how loss and gradient norm run.

python scripts/long_precision.py --json benchmarks/results/long-precision.json

Trains a narrow autoencoder on the pictures that ship, once a precision and upsampler: float32 and bfloat16 by the
engine, float16 by autocast and GradScaler, which `fadeup train` keeps for GPUs. Rows that are in the file already are
not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fadeup.bench import environment
from fadeup.checkpoint import write
from fadeup.data.loading import Batches
from fadeup.engine import train
from fadeup.models import Autoencoder
from fadeup.recipes import Reconstruction


@dataclass(frozen=True)
class Narrow(Reconstruction):
    """The toy task on half the resolution with a narrow network: a step in half precision takes a CPU long."""

    train_images: int = 800
    size: int = 16
    batch_size: int = 2
    channels: tuple[int, ...] = (8, 8)

    def model(self, upsampler: str) -> nn.Module:
        return Autoencoder(upsampler, channels=self.channels)


def by_engine(recipe: Narrow, upsampler: str) -> dict[str, Any]:
    trained = train(recipe, upsampler, recipe.data(), seed=0)
    weights = all(bool(x.isfinite().all()) for x in trained.model.state_dict().values())
    return summary(trained.losses, trained.gradient_norms, trained.seconds) | {"weights_finite": weights, "skipped": 0}


def by_scaler(recipe: Narrow, upsampler: str) -> dict[str, Any]:
    """float16: the same batches, seed and schedule; a step whose scaled gradient overflows is passed over."""
    data = recipe.data()
    torch.manual_seed(0)
    model, steps = recipe.model(upsampler).train(), recipe.steps(data)
    optimizer, scheduler = recipe.optimizer(model, steps)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=200)
    losses, norms, skipped, started = [], [], 0, time.perf_counter()
    for keys in Batches(len(data.train), recipe.batch_size, 0, steps):
        images = torch.stack([data.train[sample][0] for _, sample in keys])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = recipe.loss(model(images).float(), images)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm, scale = float(nn.utils.get_total_norm([x.grad for x in model.parameters()])), scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        if scaler.get_scale() < scale:
            skipped += 1
        else:
            norms.append(norm)
            scheduler.step()
    weights = all(bool(x.isfinite().all()) for x in model.state_dict().values())
    row = summary(np.array(losses), np.array(norms), time.perf_counter() - started)
    return row | {"weights_finite": weights, "skipped": skipped}


def summary(losses: np.ndarray, norms: np.ndarray, seconds: float) -> dict[str, Any]:
    """Counts over all steps; means of losses and medians of norms over tenths of the training."""
    return {
        "steps": len(losses),
        "not_finite": int((~np.isfinite(losses)).sum() + (~np.isfinite(norms)).sum()),
        "losses": [float(part.mean()) for part in np.array_split(losses, 10)],
        "gradient_norms": [float(np.median(part)) for part in np.array_split(norms, 10)],
        "largest_gradient_norm": float(norms.max()),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--upsamplers", nargs="+", default=["fade", "carafe"])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text())["rows"] if arguments.json.exists() else []
    for upsampler in arguments.upsamplers:
        for precision in arguments.precisions:
            key = {"upsampler": upsampler, "precision": precision}
            if any(key.items() <= row.items() for row in rows):
                continue
            half = precision == "float16"
            recipe = Narrow(precision="float32" if half else precision, epochs=math.ceil(arguments.steps / 400))
            row = (by_scaler if half else by_engine)(recipe, upsampler)
            rows.append(key | row)
            print(json.dumps(rows[-1]), flush=True)
            write(arguments.json, json.dumps({"environment": environment(), "rows": rows}, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
