"""A recipe of a second a hundred steps, for tests of the engine, and what processes of their own do with it.

python toy.py CHECKPOINT OUT          trains, writing its checkpoint after every step, and keeps the weights
torchrun toy.py - OUT                 the same on several processes; each also writes what it scored
"""

import ast
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from fadeup.engine import Setting, evaluate, train
from fadeup.recipes import Metric, Recipe, Split


class Numbers(Dataset):
    """Pictures of noise whose target is their mean over channels."""

    def __init__(self, count, start):
        self.count, self.start = count, start

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        picture = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(self.start + index))
        return picture, picture.mean(dim=0, keepdim=True)


@dataclass(frozen=True)
class Toy(Recipe):
    task = "toy"
    metrics = (Metric("error", "error", "lower", 4),)
    upsamplers = ("nearest",)

    epochs: int = 3
    batch_size: int = 4
    dropout: float = 0.2
    norm: bool = True
    rate: float = 0.05
    noise: float = 0.1
    pause: float = 0.0

    def data(self):
        return Split(Numbers(14, 0), Numbers(7, 100))

    def augment(self, sample):
        return sample[0] + self.noise * torch.randn_like(sample[0]), sample[1]

    def model(self, upsampler):
        norm = nn.BatchNorm2d(8) if self.norm else nn.Identity()
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), norm, nn.ReLU(), nn.Dropout(self.dropout), nn.Conv2d(8, 1, 1)
        )

    def optimizer(self, model, steps):
        optimizer = torch.optim.AdamW(model.parameters(), self.rate)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

    def loss(self, output, target):
        time.sleep(self.pause)
        return F.mse_loss(output, target)

    def statistics(self, prediction, target):
        return {"error": (prediction - target).abs().flatten(1).mean(dim=1)[:, None]}

    def show(self, data):
        return [0, 3]

    def picture(self, prediction):
        return (prediction[:, 0].clamp(0, 1) * 255).to(torch.uint8).numpy()

    def originals(self, sample):
        return {"target": self.picture(sample[1][None])[0]}

    def error(self, prediction, target):
        return (prediction - target).abs()[:, 0].numpy()


def main(checkpoint, out, **options):
    recipe = Toy(**options)
    data = recipe.data()
    path = None if checkpoint == "-" else Path(checkpoint)
    trained = train(recipe, "nearest", data, seed=1, checkpoint=path, setting=Setting(checkpoint_seconds=0))
    seen = []
    statistics = evaluate(recipe, trained.model, data.test, on_samples=seen.append)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    weights = {name: tensor.numpy() for name, tensor in trained.model.state_dict().items()}
    np.savez(f"{out}.{rank}.npz", losses=trained.losses, scored=sum(seen), **statistics, **weights)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = dict(argument.split("=") for argument in sys.argv[3:])
    main(sys.argv[1], sys.argv[2], **{key: ast.literal_eval(value) for key, value in options.items()})
