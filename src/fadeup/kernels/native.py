"""Finds or builds the library of `native.cpp` for the CPU it runs on, and calls it on PyTorch's own threads.

Wheels for x86-64 Linux bring libraries for two levels of CPUs in `prebuilt`. Elsewhere one is compiled once, with the
system's C++ compiler, into a private folder under the user's cache directory (`FADEUP_CACHE` moves it); `FADEUP_JIT=0`
forbids that. A file there is loaded only if it is this user's alone and ends with the digest of itself and of what it
was built from: source, flags and CPU. Anything else is built again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
# Never -ffast-math: it breaks NaN and infinity, and with gcc before 13 loading such a library flushes denormals in the
# whole process.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
# The first that the compiler takes. What gcc leaves out in the first saves a fifth of its time and costs no speed.
CPU_FLAGS = (("-march=native", "-fno-ipa-cp-clone", "-fno-tree-pre"), ("-march=native",), ("-mcpu=native",), ())
PREBUILT = SOURCE.with_name("prebuilt")
_V3 = {"x86_64", "abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
# What a CPU has to have for the libraries of a wheel, in the words of /proc/cpuinfo; the best first.
LEVELS = {
    "x86-64-v4": _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": _V3,
}
# On a Zen 3 as fast as -march=native; by gcc's generic choice the backward takes 4 to 20 % longer.
TUNE = "-mtune=znver3"
COMPILERS = ("c++", "g++", "clang++")
BUILD_SECONDS = 120
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
STREAM_BYTES = 4 << 20
HUGE_BYTES = 32 << 20
INSTALL = "install a C++ compiler (Debian, Ubuntu: apt-get install g++; macOS: xcode-select --install) or set CXX"

logger = logging.getLogger("fadeup")


class BuildError(RuntimeError):
    """Why there is no library."""


@dataclass(frozen=True)
class Library:
    """The loaded library, where it came from, and PyTorch's parallel loop."""

    path: Path
    run: Any
    peak: Any
    parallel_for: ctypes.c_void_p

    @property
    def level(self) -> str | None:
        """The level of CPUs for which it came with the package; None where it was built for this CPU."""
        return self.path.stem.removeprefix("native-") if self.path.parent == PREBUILT else None


# ---- what identifies a build ----


def cpu() -> str:
    """Architecture and instruction sets of this CPU."""
    fields = {"flags": "", "Features": "", "model name": ""}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in fields and not fields[name.strip()]:
                fields[name.strip()] = " ".join(sorted(value.split()))
    return " ".join([platform.machine(), platform.processor(), *fields.values()])


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join([SOURCE.read_text(), *FLAGS, *parts]).encode()).hexdigest()


def fingerprint() -> str:
    """Digest of source, flags and CPU: what a library must have been built from to be loaded here."""
    return _digest(repr(CPU_FLAGS), cpu(), sys.platform)


def _level_mark(level: str) -> str:
    return _digest(TUNE, level)


def compiler() -> list[str] | None:
    """The command of the C++ compiler: `CXX` where it is set, else the system's; None where there is none."""
    chosen = os.environ.get("CXX", "").strip()
    try:
        commands = [shlex.split(chosen)] if chosen else [[name] for name in COMPILERS]
    except ValueError:  # a quotation mark without its other half
        return None
    for command in commands:
        path = shutil.which(command[0])
        if path:
            return [path, *command[1:]]
    return None


def jit() -> str:
    """What `FADEUP_JIT` says: 1 where it is not set."""
    return os.environ.get("FADEUP_JIT", "").strip() or "1"


def may_compile() -> bool:
    """Whether `FADEUP_JIT` allows to compile the kernels; it does where it is not set.

    Raises:
        BuildError: It is neither 0 nor 1.
    """
    if jit() not in ("0", "1"):
        raise BuildError(f"FADEUP_JIT must be 0 or 1, got {jit()}")
    return jit() == "1"


def remedy() -> str:
    """What gives the kernels to a machine that has to do without them."""
    return INSTALL if jit() == "1" else "set FADEUP_JIT=1, which allows to compile them"


def _compiler_mark(command: Sequence[str]) -> str:
    found = Path(command[0]).resolve()
    status = found.stat()
    return hashlib.sha256(f"{found}{command[1:]}{status.st_size}{status.st_mtime_ns}".encode()).hexdigest()[:12]


# ---- the cache ----


def cache_folder() -> Path:
    """Where libraries are kept: `FADEUP_CACHE`, else `fadeup` under the user's cache directory."""
    chosen = os.environ.get("FADEUP_CACHE", "").strip()
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    if not base and sys.platform == "darwin":
        base = "~/Library/Caches"
    return Path(base or "~/.cache").expanduser().absolute() / "fadeup"


def _is_private(status: os.stat_result, forbidden: int) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & forbidden


def _open_cache() -> Path:
    """The cache folder, made where it is missing; refused unless it is this user's and nobody else can write to it."""
    folder: Path | str = os.environ.get("FADEUP_CACHE", "~/.cache/fadeup")
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of a user that nobody knows
        raise BuildError(f"the cache folder {folder} cannot be used: {error}; set FADEUP_CACHE to another") from error
    if not _is_private(status, OTHERS_WRITE):
        raise BuildError(
            f"the cache folder {folder} must belong to this user and be writable by nobody else: chmod 700 {folder}, "
            "or set FADEUP_CACHE to another"
        )
    return folder


def _sealed(content: bytes, mark: str) -> bytes:
    """A library with the digest of itself and of what it was built from behind it, where the loader does not look."""
    return content + hashlib.sha256(mark.encode() + content).digest()


def _is_sound(path: Path, mark: str, *, shipped: bool = False) -> bool:
    """Whether the file is whole, built from what `mark` stands for, and nobody else's work.

    In the cache it has to be this user's alone and no link. A `shipped` one is the package's, whoever installed that
    and however (some installers link); it is refused where anybody may write to it.
    """
    flags = os.O_NONBLOCK | (0 if shipped else os.O_NOFOLLOW)  # a pipe would be waited for
    try:
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
            status = os.fstat(file.fileno())
            private = not status.st_mode & stat.S_IWOTH if shipped else _is_private(status, stat.S_IRWXG | stat.S_IRWXO)
            if not private or not stat.S_ISREG(status.st_mode):
                return False
            content = file.read()
    except OSError:
        return False
    return len(content) > 32 and _sealed(content[:-32], mark) == content


def _cached(mark: str, command: Sequence[str] | None) -> Path | None:
    """The library of this compiler in the cache; without one, any: it was put there when this image was made."""
    try:
        folder = cache_folder()
        if not _is_private(folder.stat(), OTHERS_WRITE):
            return None
    except (OSError, RuntimeError):
        return None
    by = "*" if command is None else _compiler_mark(command)
    return next((path for path in sorted(folder.glob(f"native-{mark[:16]}-{by}.so")) if _is_sound(path, mark)), None)


def _prebuilt() -> Path | None:
    """The library for the highest level of this CPU that came with the package."""
    if not PREBUILT.is_dir() or platform.libc_ver()[0] != "glibc":
        return None
    has = set(cpu().split())
    paths = {level: PREBUILT / f"native-{level}.so" for level, needs in LEVELS.items() if needs <= has}
    return next((path for level, path in paths.items() if _is_sound(path, _level_mark(level), shipped=True)), None)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One build at a time in a folder; others wait, but not for a process that is stuck."""
    import fcntl

    with (folder / "lock").open("w") as file:
        until = time.monotonic() + BUILD_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    break  # two builds at once do no harm: each renames a whole file into place
                time.sleep(0.05)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile has the file open too


def build(*, rebuild: bool = False) -> Path:
    """Path of a sound library: one in the cache that was built for this CPU, else the package's, else compiled now.

    Where the package's fits, nothing is compiled unless `rebuild` asks for it. What is compiled is kept in the cache.

    Raises:
        BuildError: There is none, and `FADEUP_JIT` forbids compiling, there is no compiler, it failed or took more than
            two minutes, or there is nowhere to write.
    """
    allowed = may_compile()
    mark, command = fingerprint(), compiler() if allowed else None
    found = None if rebuild else _cached(mark, command) or _prebuilt()
    if found:
        return found
    if not allowed:
        missing = "" if rebuild else ", and neither the package nor the cache has a library for this CPU"
        raise BuildError(f"FADEUP_JIT=0 forbids compiling{missing}")
    folder = _open_cache()
    if command is None:
        chosen = os.environ.get("CXX")
        raise BuildError(f"CXX={chosen} was not found" if chosen else "there is no C++ compiler")
    target = folder / f"native-{mark[:16]}-{_compiler_mark(command)}.so"
    try:
        with _lock(folder):
            if rebuild or not _is_sound(target, mark):
                _compile(command, folder, target, mark, CPU_FLAGS)
    except OSError as error:
        raise BuildError(f"the cache folder {folder} cannot be used: {error}; set FADEUP_CACHE to another") from error
    return target


def prebuild(level: str, folder: Path, *flags: str) -> Path:
    """Compile, with `flags` besides ours, the library that a wheel brings for CPUs of `level`.

    Raises:
        BuildError: There is no compiler, or it failed.
    """
    command, target = compiler(), folder / f"native-{level}.so"
    if command is None:
        raise BuildError("there is no C++ compiler")
    chosen = (f"-march={level}", TUNE, *flags)
    _compile(command, folder, target, _level_mark(level), ((*chosen, *CPU_FLAGS[0][1:]), chosen))
    return target


def _compile(command: list[str], folder: Path, target: Path, mark: str, choices: Sequence[Sequence[str]]) -> None:
    logger.info("fadeup: building the CPU kernels")
    for left in folder.glob("build-*-*"):  # by builds whose processes were killed
        if not lives(left.name.split("-")[1]):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"build-{os.getpid()}-") as work:
        made, sealed, error = Path(work) / "native.so", Path(work) / "sealed.so", ""
        halves = {part: Path(work) / f"{part}.o" for part in (1, 2)}
        for choice in choices:
            flags = [*FLAGS, *choice]
            error = _run(
                [[*command, *flags, f"-DFADEUP_PART={n}", "-c", str(SOURCE), "-o", str(o)] for n, o in halves.items()]
            )
            error = error or _run([[*command, *flags, "-shared", *map(str, halves.values()), "-o", str(made)]])
            if not error and made.is_file() and b"fadeup_run" in made.read_bytes():
                break
        else:
            raise BuildError(f"{command[0]} failed: {error or 'it made no library'}")
        with sealed.open("wb") as file:
            file.write(_sealed(made.read_bytes(), mark))
            file.flush()
            os.fsync(file.fileno())
        sealed.chmod(0o700)
        sealed.replace(target)


def lives(process: str) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _run(commands: list[list[str]]) -> str:
    """Run commands side by side within their time; the first words of complaint, or nothing where all succeeded."""
    processes, outputs = [], []

    def start() -> None:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    try:
        # Ctrl-C is raised in the main thread, where it would come between the start of a process and its entry.
        with ThreadPoolExecutor(1) as starter:
            starter.submit(start).result()
        until = time.monotonic() + BUILD_SECONDS
        outputs = [process.communicate(timeout=max(0.1, until - time.monotonic()))[0] for process in processes]
    except subprocess.TimeoutExpired:
        raise BuildError(f"{commands[0][0]} did not finish within {BUILD_SECONDS} s") from None
    except OSError as error:
        raise BuildError(f"{commands[0][0]} cannot be run: {error}") from error
    finally:
        for process in processes if not outputs else ():  # one hangs, or Ctrl-C was pressed: their own children too
            with process, contextlib.suppress(ProcessLookupError):  # communicate, interrupted, cannot be called again
                os.killpg(process.pid, signal.SIGKILL)
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            lines = output.decode(errors="replace").strip().splitlines()
            complaints = [line for line in lines if "error" in line] or lines
            return complaints[0][:300] if complaints else f"exit code {process.returncode}"
    return ""


# ---- loading ----

_guard = threading.Lock()
_loaded: Library | str | None = None
_forked = False


def _after_fork() -> None:
    """PyTorch's OpenMP threads do not exist in a forked child, and waiting for them would hang."""
    global _guard, _forked
    _guard, _forked = threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _load() -> Library:
    if sys.platform == "win32":
        raise BuildError("Windows is not supported")
    try:
        # torch is loaded already; this only finds its symbols
        names = ("libtorch_cpu.so", "libtorch_cpu.dylib")
        torch_cpu = next(p for p in (Path(torch.__file__).parent / "lib" / name for name in names) if p.exists())
        parallel_for = ctypes.cast(ctypes.CDLL(str(torch_cpu)).torch_parallel_for, ctypes.c_void_p)
    except (StopIteration, OSError, AttributeError) as error:
        raise BuildError(f"this torch ({torch.__version__}) has no torch_parallel_for") from error
    path = build()
    try:
        library = ctypes.CDLL(str(path))
        run, peak = library.fadeup_run, library.fadeup_peak
    except (OSError, AttributeError) as error:
        raise BuildError(f"{path} cannot be loaded: {error}") from error
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32], ctypes.c_int32
    peak.argtypes, peak.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
    return Library(path, run, peak, parallel_for)


def library() -> Library:
    """The library, built and loaded at the first call.

    Raises:
        BuildError: There is none; the reason is found once and then repeated.
    """
    global _loaded
    if isinstance(_loaded, Library):
        return _loaded
    with _guard:
        if _loaded is None:
            try:
                _loaded = _load()
            except BuildError as error:
                _loaded = str(error)
        if isinstance(_loaded, str):
            raise BuildError(_loaded)
        return _loaded


def problem() -> str | None:
    """Why the kernels cannot be used, or None where they can."""
    try:
        library()
    except BuildError as error:
        return str(error)
    return None


_warned = False


def is_available() -> bool:
    """Whether the kernels can be used; the first time they cannot, one warning says why and what to install."""
    global _warned
    reason = problem()
    if reason and not _warned:
        _warned = True
        warnings.warn(
            f"fadeup's CPU kernels could not be built ({reason}); the slower impl='eager' is used. To have them, "
            f"{remedy()}; `fadeup doctor` tells more.",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason is None


for _constant in (problem, is_available):  # what torch.compiler.assume_constant_result does, without its imports
    _constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


# ---- calling ----

_ABSENT = (0,) * 6
_ARGUMENTS = ctypes.c_int64 * (10 + 12 * 6)


def _map(x: Tensor | None) -> tuple[int, ...]:
    return _ABSENT if x is None else (x.data_ptr(), *x.stride(), TYPES[x.dtype])


def memory_format(like: Tensor) -> torch.memory_format:
    """Channels-last where `like` is and is not contiguous too, else contiguous."""
    if like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for a map of that shape, in the type, place and format of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def _empty_like(x: Tensor) -> Tensor:
    return _empty(tuple(x.shape), x)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    out = empty(shape, like)
    if out.nbytes >= HUGE_BYTES:
        _advise_huge_pages(out)
    return out


def _advise_huge_pages(x: Tensor) -> None:
    """Fresh memory of this size comes from the system page by page; 2 MiB at a time it comes several times faster."""
    if sys.platform != "linux":
        return
    start = -(-x.data_ptr() // (2 << 20)) * (2 << 20)
    length = (x.data_ptr() + x.nbytes - start) // (2 << 20) * (2 << 20)
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), 14)  # MADV_HUGEPAGE; advice only


def _call(
    decoder: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    kernel_size: int,
    raw: bool,
    streamed: Tensor | None,
    maps: Sequence[Tensor | None],
    backward: bool,
) -> None:
    batch, channels, height, width = size
    if 0 in size or 0 in out_size:
        return
    stream = (
        streamed is not None
        and streamed.nbytes >= STREAM_BYTES
        and streamed.data_ptr() % 64 == 0
        and channels * streamed.element_size() % 64 == 0
        and streamed.is_contiguous(memory_format=torch.channels_last)
    )
    wide = [x.dtype == torch.float64 for x in (decoder, *maps) if x is not None]
    if any(wide) and not all(wide):
        raise ValueError(
            "all maps must be float64 where one is, got float64 beside others; convert them with .double()"
        )
    numbers = [batch, channels, height, width, *out_size, kernel_size, raw, stream, 0]
    for x in (decoder, *maps):
        numbers += _map(x)
    loaded = library()
    if loaded.run(None if _forked else loaded.parallel_for, _ARGUMENTS(*numbers), backward):
        raise MemoryError("fadeup's CPU kernels could not allocate their scratch memory")


def forward(
    decoder: Tensor,
    logits: Tensor,
    coarse_logits: Tensor | None,
    encoder: Tensor | None,
    gate_logits: Tensor | None,
    *,
    raw: bool = False,
    like: Tensor | None = None,
) -> Tensor:
    """`reassemble`; where `raw`, `logits` are the weights themselves. `decoder` and `encoder` are of one dtype.

    The result has the memory format of `like`, by default of `decoder`.
    """
    kernel_size = round(logits.shape[1] ** 0.5)
    out_size = logits.shape[2:]
    out = _empty((*decoder.shape[:2], *out_size), decoder if like is None else like)
    maps = (logits, coarse_logits, encoder, gate_logits, out, None, None, None, None, None, None)
    _call(decoder, decoder.shape, out_size, kernel_size, raw, out, maps, False)
    return out


def backward(
    grad: Tensor,
    decoder: Tensor,
    logits: Tensor,
    coarse_logits: Tensor | None,
    encoder: Tensor | None,
    gate_logits: Tensor | None,
    needed: Sequence[bool],
    *,
    raw: bool = False,
) -> list[Tensor | None]:
    """Gradients of `forward`'s five maps, None where not needed. Each has the dtype and memory format of its map."""
    inputs = (decoder, logits, coarse_logits, encoder, gate_logits)
    grads = [_empty_like(x) if x is not None and need else None for x, need in zip(inputs, needed, strict=True)]
    kernel_size = round(logits.shape[1] ** 0.5)
    maps = (logits, coarse_logits, encoder, gate_logits, None, grad, *grads)
    _call(decoder, decoder.shape, grad.shape[2:], kernel_size, raw, grads[3], maps, True)
    if decoder.shape[1] == 0:  # nothing ran, and without channels the kernels make no difference
        for x in grads:
            if x is not None:
                x.zero_()
    return grads


def window_dot(query: Tensor, key: Tensor, kernel_size: int) -> Tensor:
    """`window_dot`: the gradient of `reassemble` by its weights, with `query` in place of the output's gradient."""
    out = _empty((query.shape[0], kernel_size**2, *query.shape[2:]), query)
    if query.shape[1] == 0:
        return out.zero_()
    maps = (None, None, None, None, None, query, None, out, None, None, None)
    _call(key, key.shape, query.shape[2:], kernel_size, True, None, maps, True)
    return out


def peak(seconds: float = 0.2) -> float:
    """Multiply–adds in float32 per second that this machine reaches on PyTorch's threads, out of registers."""
    loaded, items, best, rounds = library(), 8 * torch.get_num_threads(), 0.0, 20_000
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        each = loaded.peak(loaded.parallel_for, items, rounds)
        best = max(best, items * rounds * each / (time.perf_counter() - start))
    return best
