"""How the GPU kernels compile for A100 and H100, which no GPU is needed for."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton, which torch brings on Linux")
import gpu_table
import gpu_traffic

ROOT = Path(__file__).parents[2]
HELD = json.loads((ROOT / "benchmarks/results/gpu_kernels.json").read_text())
PLACE = ("architecture", "kernels", "kernel", "dtype", "kernel_size", "ratio", "layout")
SLACK = {"registers": 24, "stack": 32, "shared": 16384}
"""By which another version of Triton may differ from the table."""


def by_place(rows: list[dict]) -> dict[tuple, dict]:
    return {tuple(row[name] for name in PLACE): row for row in rows}


def run(*arguments: str) -> str:
    """The script in a process of its own, since Triton compiles nothing where it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "scripts/gpu_table.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The table as it is now."""
    path = tmp_path_factory.mktemp("table") / "kernels.json"
    run("--json", str(path))
    return json.loads(path.read_text())


def test_the_tables_of_the_page_are_those_of_the_scripts():
    page = (ROOT / "docs/gpu.md").read_text()
    assert gpu_traffic.markdown() in page
    assert gpu_table.markdown(HELD) in page


@pytest.mark.slow
def test_kernels_take_what_the_table_says(compiled):
    found, held = by_place(compiled["kernels"]), by_place(HELD["kernels"])
    assert found.keys() == held.keys()
    same = compiled["triton"] == HELD["triton"]
    for place, row in found.items():
        for name, slack in SLACK.items():
            limit = held[place][name] + (0 if same else slack)
            assert row[name] <= limit, f"{place}: {row[name]} {name}, more than {limit}"


@pytest.mark.slow
def test_tiles_spill_nothing_and_run_on_tensor_cores_with_wide_loads(compiled):
    tiles = [row for row in compiled["kernels"] if row["kernels"] == "tiles"]
    assert {row["kernel"] for row in tiles} == {"forward", "backward_kernels", "backward_decoder"}
    every = itertools.product(("bfloat16", "TF32"), (3, 5), ("channels last", "contiguous"))
    assert {(row["dtype"], row["kernel_size"], row["layout"]) for row in tiles} >= set(every)
    for row in tiles:
        assert row["stack"] == 0, row
        assert row["tensor_cores"] in ("mma", "wgmma"), row
        assert row["wide_loads"] or row["layout"] == "contiguous", row


@pytest.mark.slow
def test_small_and_odd_calls_compile():
    assert int(run("--corners")) > 40


@pytest.mark.slow
def test_every_kernel_leaves_room_for_two_blocks_of_shared_memory(compiled):
    for row in compiled["kernels"]:
        assert 2 * row["shared"] <= {"sm_80": 163, "sm_90": 227}[row["architecture"]] * 1024, row
        assert row["registers"] <= 255, row
