"""Scores a network over a data set, shared by the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fadeup.data.loading import Prepared, Sample
from fadeup.plug.trace import evaluating
from fadeup.recipes.recipe import Recipe


@torch.no_grad()
def evaluate(
    recipe: Recipe,
    model: nn.Module,
    samples: Dataset[Sample],
    *,
    device: str | torch.device = "cpu",
    workers: int = 0,
    on_samples: Callable[[int], None] = lambda count: None,
    on_prediction: Callable[[int, Tensor], None] = lambda index, prediction: None,
    on_statistics: Callable[[int, dict[str, np.ndarray]], None] = lambda index, statistics: None,
    finished: Mapping[int, dict[str, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """Statistics of every sample, per metric `(samples, k)`, for `Metric.reduce` of their mean.

    Under `torchrun` the processes share the samples, none of which is scored twice, and all get all statistics.

    Args:
        recipe: How samples are prepared, predictions finished and scored.
        model: Trained network; its mode is restored.
        samples: As the data set gives them.
        device: Where the model is.
        workers: Processes that load; 0 loads in this one.
        on_samples: Called with the number of samples after each batch.
        on_prediction: Called with each sample's index and finished prediction, each on the process that made it.
        on_statistics: Called after that with each sample's index and statistics, per metric `(k,)`.
        finished: What `on_statistics` was called with in an evaluation that was interrupted, by index. Batches of which
            all is finished are passed over; others are made whole again, for a network rounds by the size of its batch.

    Raises:
        ValueError: There are no samples.
    """
    count = len(samples)  # type: ignore[arg-type]
    if not count:
        raise ValueError("test data must hold a sample or more, got none")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = list(range(rank, count, world))
    batches = [mine[start : start + recipe.test_batch] for start in range(0, len(mine), recipe.test_batch)]
    held = finished or {}
    done = [index for batch in batches if held.keys() >= {*batch} for index in batch]
    left = [batch for batch in batches if not held.keys() >= {*batch}]
    loader = DataLoader(Prepared(samples, recipe.prepare), batch_sampler=left, num_workers=workers)
    parts = [([index], {name: values[None] for name, values in held[index].items()}) for index in done]
    on_samples(len(done))
    with evaluating(model):
        for indices, (inputs, target) in zip(left, loader, strict=True):
            prediction = _finished(recipe, model, inputs, target, device)
            statistics = recipe.statistics(prediction, target)
            parts.append((indices, {name: values.double().numpy() for name, values in statistics.items()}))
            for place, (index, one) in enumerate(zip(indices, prediction, strict=True)):
                on_prediction(index, one)
                on_statistics(index, {name: values[place] for name, values in parts[-1][1].items()})
            on_samples(len(indices))
    if world > 1:
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, parts)
        parts = [part for group in gathered for part in group]
    order = np.argsort(np.concatenate([indices for indices, _ in parts]))
    return {metric.name: np.concatenate([part[metric.name] for _, part in parts])[order] for metric in recipe.metrics}


@torch.no_grad()
def predict(
    recipe: Recipe,
    model: nn.Module,
    samples: Dataset[Sample],
    indices: Sequence[int],
    *,
    device: str | torch.device = "cpu",
) -> list[Tensor]:
    """The finished predictions for some test samples, one by one, on the CPU."""
    prepared = Prepared(samples, recipe.prepare)
    with evaluating(model):
        pairs = [prepared[index] for index in indices]
        return [_finished(recipe, model, inputs[None], target, device)[0] for inputs, target in pairs]


def _finished(recipe: Recipe, model: nn.Module, inputs: Tensor, target: Tensor, device: str | torch.device) -> Tensor:
    """The finished predictions for a batch, on the CPU."""
    inputs = inputs.to(device)
    return recipe.finish(model(inputs), inputs, (target.shape[-2], target.shape[-1])).cpu()
