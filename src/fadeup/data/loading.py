"""Order and augmentation of training samples: they follow from seed, epoch and sample, and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Sample = tuple[Tensor, ...]
"""An input and its target, without a batch dimension."""


def mixed(*numbers: int) -> int:
    """A seed from several numbers of 0 or more; different ones give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Batches(Sampler[list[tuple[int, int]]]):
    """A process's share of each step's batch, as `(epoch, sample)`, from step `start` on.

    A batch with fewer samples than processes is repeated until every process has one.

    Args:
        samples: In an epoch.
        batch_size: Of all processes together; an epoch's last batch may be smaller.
        seed: With the epoch it fixes the order.
        steps: Of the whole training.
        start: The first step.
        rank: Of this process.
        world: Number of processes.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, steps: int, start: int = 0, rank: int = 0, world: int = 1
    ):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.steps, self.start, self.rank, self.world = steps, start, rank, world

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = math.ceil(self.samples / self.batch_size)
        order, current = [], -1
        for step in range(self.start, self.steps):
            epoch, place = divmod(step, per_epoch)
            if epoch != current:
                generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
                order, current = torch.randperm(self.samples, generator=generator).tolist(), epoch
            keys = [(epoch, sample) for sample in order[place * self.batch_size : (place + 1) * self.batch_size]]
            if len(keys) < self.world:
                keys = (keys * self.world)[: self.world]
            yield keys[self.rank :: self.world]


class Augmented(Dataset[Sample]):
    """Training samples by `(epoch, sample)`; `augment` draws from torch's generator, seeded for each of them anew."""

    def __init__(self, samples: Dataset[Sample], augment: Callable[[Sample], Sample], seed: int):
        self.samples, self.augment, self.seed = samples, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Sample]:
        augmented = []
        with torch.random.fork_rng(devices=[]):
            for epoch, sample in keys:
                torch.manual_seed(mixed(self.seed, epoch, sample))
                augmented.append(self.augment(self.samples[sample]))
        return augmented


class Prepared(Dataset[Sample]):
    """Test samples as the network takes them."""

    def __init__(self, samples: Dataset[Sample], prepare: Callable[[Sample], Sample]):
        self.samples, self.prepare = samples, prepare

    def __getitem__(self, index: int) -> Sample:
        return self.prepare(self.samples[index])
