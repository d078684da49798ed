import subprocess
import sys

import pytest
import torch

from fadeup.bench import commit_of, environment, measure, peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_peak_memory_sees_what_is_freed_again_and_not_what_was_there():
    kept = torch.ones(16 * 2**20)  # 64 MiB before
    peak = peak_memory(lambda: torch.ones(8 * 2**20).sum().item())
    assert peak is not None
    assert 28 < peak < 60  # 32 MiB and what the allocator adds
    assert kept.numel()


def test_measure_gives_median_and_spread():
    result = measure(lambda: torch.ones(1000).sum(), min_seconds=0.05)
    assert result.median_ms > 0
    assert result.iqr_ms >= 0


def test_commit_is_that_of_the_package_and_not_of_a_repository_around_it(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", *words], check=True)

    package = tmp_path / "venv" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("")
    assert commit_of(package) is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "around")
    assert commit_of(package) is None
    git("add", ".")
    git("commit", "-q", "-m", "tracked")
    assert len(commit_of(package) or "") >= 7
    monkeypatch.setenv("PATH", "")
    assert commit_of(package) is None  # no git
    assert environment()["torch"]
