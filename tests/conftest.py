from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

# Derandomized: a red run stays red, here and in CI. No deadline: the machines that run this are shared.
settings.register_profile("fadeup", derandomize=True, deadline=None, max_examples=15, database=None)
settings.load_profile("fadeup")

# The maps are tiny. With a thread per core beside another job on two cores the suite took 6 minutes, with one 1.3.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Golden:
    """What the authors' public code gave for these inputs and weights."""

    inputs: dict[str, Tensor]
    state: dict[str, Tensor]
    outputs: dict[str, Tensor]
    about: dict


@pytest.fixture
def golden():
    """`golden(name)` reads `tests/golden/name.safetensors`."""

    def read(name: str) -> Golden:
        parts: dict[str, dict[str, Tensor]] = {"input": {}, "state": {}, "output": {}}
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no dictionary
                part, _, rest = key.partition(".")
                parts[part][rest] = file.get_tensor(key)
            about = json.loads(file.metadata()["about"])
        return Golden(parts["input"], parts["state"], parts["output"], about)

    return read


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
