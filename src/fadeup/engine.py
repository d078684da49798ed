"""Trains and evaluates a network by a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fadeup.recipes.recipe import Recipe, Split


class Diverged(RuntimeError):
    """The loss is no longer finite."""


def train(
    recipe: Recipe,
    upsampler: str,
    data: Split,
    *,
    seed: int,
    device: str = "cpu",
    on_step: Callable[[float], None] = lambda loss: None,
) -> nn.Module:
    """Train the recipe's network from scratch.

    The seed fixes the start of all layers outside the upsamplers, and the order of the pictures, whatever the
    upsampler: rows of one seed differ by their upsampler alone.

    Args:
        recipe: Network, loss, optimizer, epochs.
        upsampler: Key or alias.
        data: Loaded by `recipe.data()`.
        seed: Of weights and order.
        device: `"cpu"`, `"cuda"`, ...
        on_step: Called after each step with its loss.

    Raises:
        Diverged: The loss is not finite.
    """
    torch.manual_seed(seed)
    model = recipe.model(upsampler).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer, scheduler = recipe.optimizer(model, recipe.steps(data))
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.train_inputs), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        for step, indices in enumerate(order.split(recipe.batch_size)):
            output = model(data.train_inputs[indices].to(device))
            loss = recipe.loss(output, data.train_targets[indices].to(device))
            value = loss.item()
            if not math.isfinite(value):
                raise Diverged(
                    f"loss must be finite, got {value} with {upsampler!r}, seed {seed}, epoch {epoch + 1}, "
                    f"step {step + 1}; lower the learning rate"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            on_step(value)
    return model


@torch.no_grad()
def predict(recipe: Recipe, model: nn.Module, inputs: Tensor, *, device: str = "cpu") -> Tensor:
    """The finished predictions for `(N, C, H, W)` inputs, on the CPU."""
    model.eval()
    return torch.cat([recipe.finish(model(batch.to(device))).cpu() for batch in inputs.split(100)])
