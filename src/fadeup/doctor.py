"""What is installed, which implementation `impl="auto"` uses and why; builds the CPU's kernels ahead of time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import fadeup
from fadeup.kernels import native, triton
from fadeup.kernels.native import BuildError, remedy

__all__ = [
    "BuildError",
    "build",
    "cpu_model",
    "diagnose",
    "package_version",
    "remedy",
    "render",
    "rows",
    "vector_sets",
]

VECTOR_SETS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16"),
    *("asimd", "asimdhp", "bf16", "sve", "sve2"),
)
"""Instruction sets that matter here, as Linux names them on x86-64 and on ARM."""


def _cpu_fields() -> dict[str, str]:
    """The fields of the first processor in `/proc/cpuinfo`; none where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_model() -> str:
    """The name of the CPU's model, as far as the system says it."""
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def vector_sets() -> list[str]:
    """The vector instruction sets of the CPU that kernels make use of; empty where the system does not list them."""
    fields = _cpu_fields()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return [name for name in VECTOR_SETS if name in flags]


def _version(command: list[str] | None) -> str | None:
    """The first line of what a compiler says of itself."""
    if command is None:
        return None
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def package_version(name: str) -> str | None:
    """The version of an installed package; None where it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> dict[str, Any] | None:
    """The GPU that torch uses first, and the implementation there; None without one."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    problem = triton.problem(device, torch.float32)
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "implementation": "eager" if problem else "triton",
        "problem": problem,
        "bfloat16": None if problem else triton.problem(device, torch.bfloat16),
    }


def diagnose() -> dict[str, Any]:
    """Versions, CPU, GPU, and the implementations that are used; builds the CPU's kernels where they are missing."""
    problem, command = native.problem(), native.compiler()
    return {
        "fadeup": fadeup.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"model": cpu_model(), "vectors": vector_sets(), "torch": torch.backends.cpu.get_cpu_capability()},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "implementation": "eager" if problem else "native",
        "problem": problem,
        "install": remedy() if problem else None,
        "library": None if problem else str(native.library().path),
        "prebuilt": None if problem else native.library().level,
        "cache": str(native.cache_folder()),
        "compiler": None if command is None else " ".join(command),
        "compiler_version": _version(command),
        "may_compile": native.jit() == "1",
        "gpu": _gpu(),
        "cuda": torch.version.cuda,
        "triton": package_version("triton"),
        "interpreted": triton.is_interpreted(),
    }


def build(*, rebuild: bool = False) -> tuple[Path, float]:
    """Have the kernels ready, load them, and say where they are and how many seconds it took.

    Those that came with the package do where they fit; `rebuild` compiles others for just this CPU, into the cache.

    Raises:
        BuildError: They could not be built, kept or loaded.
    """
    start = time.perf_counter()
    path = native.build(rebuild=rebuild)
    native.library()
    return path, time.perf_counter() - start


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The diagnosis in words, as names and values."""
    cpu = found["cpu"]
    lines = [
        ("fadeup", f"{found['fadeup']}, torch {found['torch']}, Python {found['python']}, {found['system']}"),
        ("CPU", cpu["model"]),
        ("vectors", f"{' '.join(cpu['vectors']) or 'not listed by the system'} (torch uses {cpu['torch']})"),
        ("threads", f"{found['threads']} of {found['cores']} cores"),
    ]
    if found["problem"]:
        lines += [
            ("impl='auto'", "eager on the CPU, the slower one: the native kernels cannot be used"),
            ("because", found["problem"]),
            ("to do", found["install"]),
        ]
    else:
        level = found["prebuilt"]
        origin = f"came with the package, for {level} CPUs" if level else "built for this CPU"
        lines += [
            ("impl='auto'", "native on the CPU, the fused kernels"),
            ("library", f"{found['library']} ({origin})"),
        ]
    return [
        *lines,
        ("compiler", _compiler(found)),
        ("cache", found["cache"] + (" (FADEUP_CACHE)" if os.environ.get("FADEUP_CACHE", "").strip() else "")),
        *_gpu_rows(found),
    ]


def _compiler(found: dict[str, Any]) -> str:
    if found["compiler"] is None:
        kept = "none; the library was put into the cache before"
        return "none" if found["problem"] else "none, and none is needed" if found["prebuilt"] else kept
    unused = "" if found["may_compile"] else "; FADEUP_JIT forbids its use"
    return f"{found['compiler']} ({found['compiler_version'] or 'says no version'}{unused})"


def _gpu_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    gpu = found["gpu"]
    versions = f"CUDA {found['cuda'] or 'none'}, Triton {found['triton'] or 'none'}"
    if found["interpreted"]:
        versions += "; TRITON_INTERPRET is set: impl='triton' runs on the CPU, slowly, as a check"
    if gpu is None:
        return [("GPU", f"none that torch can use ({versions})")]
    lines = [("GPU", f"{gpu['name']}, compute capability {gpu['capability']} ({versions})")]
    if gpu["problem"]:
        return [*lines, ("there", f"impl='auto' is eager, the slower one: {gpu['problem']}")]
    used = "impl='auto' is triton, the fused kernels"
    return [*lines, ("there", f"{used}; in bfloat16 eager: {gpu['bfloat16']}" if gpu["bfloat16"] else used)]


def render(found: dict[str, Any]) -> str:
    """The diagnosis as a table of two columns, in plain text."""
    lines = rows(found)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
