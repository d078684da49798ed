from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from torch import Tensor

# Before Triton is imported, by torch too: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

GOLDEN = Path(__file__).parent / "golden"

# Derandomized: a red run stays red, here and in CI. No deadline: the machines that run this are shared.
settings.register_profile("fadeup", derandomize=True, deadline=None, max_examples=15, database=None)
settings.load_profile("fadeup")

# The maps are tiny. With a thread per core beside another job on two cores the suite took 6 minutes, with one 1.3.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Files with many slow tests first, so that at the end no process works at one while the others have no more."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


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
                parts[part][rest] = file.get_tensor(key).to(torch.get_default_device())
            about = json.loads(file.metadata()["about"])
        return Golden(parts["input"], parts["state"], parts["output"], about)

    return read


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def device(request):
    """Tests marked gpu make their tensors on the GPU, all others on the CPU."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


@pytest.fixture(scope="session")
def cutout_folder(tmp_path_factory):
    """A folder of eight soft discs of different colours and two backgrounds, for matting."""
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image", reason="needs pillow")
    root = tmp_path_factory.mktemp("matting")
    for name in ("foregrounds", "backgrounds"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        y, x = np.mgrid[:70, :90] - np.array([35, 45])[:, None, None]
        alpha = (255 * np.clip((22 + index - np.hypot(x, y)) / 6 + 0.5, 0, 1)).astype(np.uint8)
        color = np.full((70, 90, 3), rng.integers(0, 256, 3), np.uint8)
        image.fromarray(np.dstack((color, alpha))).save(root / "foregrounds" / f"disc{index}.png")
    for index in range(2):
        noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image.fromarray(cv2.resize(noise, (160, 120))).save(root / "backgrounds" / f"noise{index}.jpg")
    return str(root)
