"""Optimizers and learning-rate schedules that recipes name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fadeup.recipes.recipe import Recipe, Split
from fadeup.upsamplers import Upsampler

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
ALGORITHMS = ("adamw", "adam", "sgd")
STEPS = {"steps": (0.7, 0.9), "milestones": (20 / 30, 26 / 30)}
"""Parts of the training after which the rate falls tenfold."""
SCHEDULES = ("poly", "cosine", *STEPS)


def build_optimizer(
    algorithm: str, groups: list[dict[str, Any]], rate: float
) -> torch.optim.AdamW | torch.optim.Adam | torch.optim.SGD:
    """The optimizer of that name over `parameter_groups`, betas 0.9 and 0.999, momentum 0.9.

    Raises:
        ValueError: The name is unknown.
    """
    if algorithm == "adamw":
        return torch.optim.AdamW(groups, rate, betas=(0.9, 0.999))
    if algorithm == "adam":
        return torch.optim.Adam(groups, rate, betas=(0.9, 0.999))
    if algorithm == "sgd":
        return torch.optim.SGD(groups, rate, momentum=0.9)
    raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")


def rate_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """What the learning rates are multiplied by in a step.

    Args:
        schedule: `"poly"`, linearly down to 0; `"cosine"`, along half a cosine; `"steps"`, ten times lower after 70
            and 90 % of the steps; `"milestones"`, after 20 and 26 of every 30.
        step: From 0.
        steps: Of the whole training.
        warmup: Part of the steps in which the rate rises from nearly 0.

    Raises:
        ValueError: The name is unknown.
    """
    warm = warmup * steps
    rise = min(1.0, (step + 1) / warm) if warm else 1.0
    if schedule == "poly":
        return rise * max(0.0, 1 - step / steps)
    if schedule == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    if schedule in STEPS:
        return rise * 0.1 ** sum(step >= int(part * steps) for part in STEPS[schedule])
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")


def parameter_groups(
    model: nn.Module, rate: float, head_factor: float, upsampler_factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameters by learning rate and decay: backbone or trunk, upsamplers, and the rest; norms do not decay.

    Frozen ones are left out.
    """
    norms = {p for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    upsamplers = {p for module in model.modules() if isinstance(module, Upsampler) for p in module.parameters()}
    backbone = set(model.get_submodule("backbone" if hasattr(model, "backbone") else "trunk").parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            factor = 1.0 if parameter in backbone else upsampler_factor if parameter in upsamplers else head_factor
            key = rate * factor, 0.0 if parameter in norms else weight_decay
            groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


@dataclass(frozen=True)
class Scheduled(Recipe):
    """Recipes whose fields name optimizer, schedule and length; each says in its own words what they mean."""

    iterations: int = 0
    algorithm: str = "adamw"
    learning_rate: float = 1e-4
    head_factor: float = 10.0
    upsampler_factor: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    schedule: str = "poly"

    def steps(self, data: Split) -> int:
        """`iterations`, or the epochs' steps."""
        return self.iterations or super().steps(data)

    def optimizer(
        self, model: nn.Module, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Of the recipe's name, with rates of their own for the backbone, the upsamplers and the rest."""
        factors = self.head_factor, self.head_factor * self.upsampler_factor
        groups = parameter_groups(model, self.learning_rate, *factors, self.weight_decay)
        optimizer = build_optimizer(self.algorithm, groups, self.learning_rate)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied by in a step."""
        return rate_factor(self.schedule, step, steps, self.warmup)
