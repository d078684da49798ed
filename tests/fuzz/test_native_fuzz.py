"""The CPU kernels under libFuzzer, AddressSanitizer and UBSan: native_fuzz.cpp says what is held against what.

For a campaign set FADEUP_FUZZ_SECONDS, FADEUP_FUZZ_BUILD (avx512, avx2 or sse) and FADEUP_FUZZ_CORPUS (a folder).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fadeup.kernels import native

HERE = Path(__file__).parent
SECONDS = float(os.environ.get("FADEUP_FUZZ_SECONDS", "30"))
# As native.py has it, but -O1: with the sanitizers that takes the compiler 45 s of processor time, and -g 10 more.
FLAGS = [flag for flag in native.FLAGS if flag not in ("-O3", "-fopenmp-simd")] + ["-O1"]
SANITIZED = ["-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi"]
BUILDS = {
    "avx512": ["-march=x86-64-v3", "-include", str(HERE / "emulated_avx512.h")],  # on any CPU with AVX2
    "avx2": ["-march=x86-64-v3"],
    "sse": ["-march=x86-64"],
}
EXAMPLES = 300


def run(*command: str | Path, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        env=os.environ | environment,
    )


def problem(clang: str | None, folder: Path) -> str | None:
    """Why the harness cannot be built here, or None."""
    if clang is None:
        return "needs clang++ with libFuzzer (Debian: apt-get install clang)"
    empty = folder / "empty.cpp"
    empty.write_text('extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }')
    done = run(clang, "-fsanitize=fuzzer,address,undefined", empty, "-o", folder / "empty")
    return f"this clang++ has no libFuzzer: {done.stderr.strip()[:200]}" if done.returncode else None


def chosen_build() -> str:
    build = os.environ.get("FADEUP_FUZZ_BUILD", "avx2")
    if "avx2" not in native.cpu().split() and build != "sse":
        return "sse"
    return build


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    clang = shutil.which("clang++")
    if reason := problem(clang, folder):
        pytest.skip(reason)
    objects = [folder / name for name in ("1.o", "2.o", "harness.o")]
    kernel = [clang, *FLAGS, *SANITIZED, *BUILDS[chosen_build()]]
    commands = [[*kernel, f"-DFADEUP_PART={n}", "-c", native.SOURCE, "-o", objects[n - 1]] for n in (1, 2)]
    commands.append([clang, "-std=c++17", "-O2", "-c", HERE / "native_fuzz.cpp", "-o", objects[2]])
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda command: run(*command), commands))
    built.append(run(clang, "-fsanitize=fuzzer,address,undefined", *objects, "-lpthread", "-o", folder / "native_fuzz"))
    for done in built:
        assert done.returncode == 0, done.stderr
    return folder / "native_fuzz"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Bytes by chance: nearly all of them are a call, and libFuzzer keeps those that reach something new."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(0)
    for i in range(EXAMPLES):
        (folder / str(i)).write_bytes(chance.randbytes(chance.choice((40, 80, 160))))
    return folder


def test_no_call_crashes_leaves_its_memory_or_gives_another_result(harness, corpus, tmp_path):
    kept = Path(os.environ.get("FADEUP_FUZZ_CORPUS", tmp_path / "kept"))
    kept.mkdir(parents=True, exist_ok=True)
    limits = ["-max_len=160", "-len_control=0", "-rss_limit_mb=0", "-malloc_limit_mb=2048", "-seed=1"]
    limits.append(f"-max_total_time={SECONDS:.0f}")
    done = run(harness, *limits, f"-artifact_prefix={tmp_path}/", kept, corpus, timeout=SECONDS + 900)
    assert done.returncode == 0, done.stderr[-4000:]
    (runs,) = re.findall(r"Done (\d+) runs", done.stderr)
    assert int(runs) > EXAMPLES, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ("short", "AddressSanitizer: heap-buffer-overflow"),
        ("value", "native_fuzz: value of"),
        ("unwritten", "native_fuzz: unwritten element of"),
        ("gap", "native_fuzz: byte between the elements of"),
    ],
)
def test_the_harness_tells_of(harness, corpus, broken, complaint, tmp_path):
    kept = f"-artifact_prefix={tmp_path}/"
    done = run(harness, "-runs=0", "-handle_abrt=0", kept, corpus, FADEUP_FUZZ_BREAK=broken)
    assert done.returncode != 0
    assert complaint in done.stderr, done.stderr[-2000:]
