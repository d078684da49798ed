"""DDP and FSDP2 around every upsampler and network, two processes on the CPU; the checks are in parallel_worker.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parallel_worker import CHECKS, WORLD

pytest.importorskip("timm", reason="needs timm")
pytest.importorskip("transformers", reason="needs transformers")

WORKER = Path(__file__).with_name("parallel_worker.py")
SECONDS = 480


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> list[dict[str, str]]:
    """What each process wrote: starting them takes 5 s, so that one pair runs all checks."""
    folder = tmp_path_factory.mktemp("parallel")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for rank in range(WORLD):
            with (folder / f"log{rank}").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(WORKER), str(rank), str(folder)],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )
        for process in processes:
            process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        pass  # the checks that were not reached say so
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = []
    for rank in range(WORLD):
        path = folder / f"results{rank}.json"
        written = json.loads(path.read_text()) if path.exists() else {}
        log = (folder / f"log{rank}").read_text()[-2000:]
        found.append({name: written.get(name, f"not reached; the process wrote\n{log}") for name in CHECKS})
    return found


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_in_two_processes(results, name):
    for rank, result in enumerate(results):
        assert not result[name], f"process {rank}:\n{result[name]}"
