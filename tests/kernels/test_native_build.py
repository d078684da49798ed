"""How the native kernels are built and kept, and what happens where they cannot be; once under the sanitizers.

Nearly all of it with shell scripts for compilers: a real one takes its time, and runs in the slow tests only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fadeup
from fadeup import doctor
from fadeup.cli import main
from fadeup.kernels import native

COMPILER = native.compiler()
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
TO_OUTPUT = "for output; do :; done\n"  # the last argument of every command


@dataclass(frozen=True)
class FakeCompiler:
    """A shell script in place of a compiler, which keeps a list of its runs."""

    path: Path

    @property
    def log(self) -> Path:
        return Path(f"{self.path}.log")

    def runs(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def fake_compiler(folder: Path, script: str) -> FakeCompiler:
    compiler = FakeCompiler(folder / "fake-c++")
    compiler.path.write_text(f'#!/bin/sh\necho $$ >> "$0.log"\n{script}\n')
    compiler.path.chmod(0o700)
    return compiler


def compute() -> torch.Tensor:
    return fadeup.reassemble(torch.ones(1, 3, 4, 5), torch.zeros(1, 9, 8, 10))


COMPUTE = """
import torch, fadeup
maps = torch.randn(1, 3, 4, 5), torch.randn(1, 9, 8, 10)
torch.testing.assert_close(fadeup.reassemble(*maps, impl="native"), fadeup.reassemble(*maps, impl="reference"))
"""


@pytest.fixture(scope="module")
def sound() -> Path:
    """The library that the other tests use."""
    if native.problem():
        pytest.skip(native.problem())
    return native.library().path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The cache folder, empty, of a process that has not looked for the kernels yet."""
    monkeypatch.setenv("FADEUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("FADEUP_JIT", raising=False)
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(native, "_warned", False)
    return tmp_path / "cache"


@pytest.fixture
def compile_with(cache, tmp_path, monkeypatch) -> Callable[[str], FakeCompiler]:
    """Makes a shell script the compiler."""

    def use(script: str) -> FakeCompiler:
        compiler = fake_compiler(tmp_path, script)
        monkeypatch.setenv("CXX", str(compiler.path))
        return compiler

    return use


@pytest.fixture
def raw(sound, tmp_path) -> str:
    """What the compiler gave when `sound` was built, as a word of a shell script."""
    (tmp_path / "raw.so").write_bytes(sound.read_bytes()[:-32])
    return shlex.quote(str(tmp_path / "raw.so"))


@pytest.fixture
def quick(raw, compile_with) -> FakeCompiler:
    """A compiler that gives it at once."""
    return compile_with(f'{TO_OUTPUT}cp {raw} "$output"')


def no_compiler(monkeypatch, tmp_path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)


def assert_falls_back(reason: str, remedy: str = r"install a C\+\+ compiler") -> None:
    """`auto` warns once and computes with eager; by name the kernels are refused; nobody crashes."""
    with pytest.warns(RuntimeWarning, match=rf"CPU kernels could not be built \({reason}.*{remedy}"):
        out = compute()
    assert out.equal(fadeup.reassemble(torch.ones(1, 3, 4, 5), torch.zeros(1, 9, 8, 10), impl="eager"))
    assert compute().equal(out)  # a second warning would be an error here
    with pytest.raises(
        ValueError, match=rf"impl must be .* got 'native', which could not be built \({reason}.*{remedy}"
    ):
        fadeup.reassemble(torch.ones(1, 3, 4, 5), torch.zeros(1, 9, 8, 10), impl="native")


def assert_native() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute()
    assert native.problem() is None
    assert native.library().path.parent == native.cache_folder().absolute()


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != "lock")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- what is built ----


@pytest.mark.slow
def test_ten_processes_at_once_build_it_once_and_all_compute(tmp_path):
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    script = f'exec {shlex.join(COMPILER)} "$@" -O1'  # half of -O3's time
    cache, compiler = tmp_path / "cache", fake_compiler(tmp_path, script)
    environment = os.environ | {"FADEUP_CACHE": str(cache), "CXX": str(compiler.path)}
    command = [sys.executable, "-c", COMPUTE]
    processes = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(10)
    ]
    complaints = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, complaints
    assert compiler.runs() == 3  # two halves, and the link
    (library,) = left_over(cache)
    assert [path.stat().st_mode & 0o777 for path in (cache, cache / library)] == [0o700, 0o700]


def test_a_second_start_compiles_nothing(quick, monkeypatch):
    assert_native()
    monkeypatch.setattr(native, "_loaded", None)
    assert_native()
    assert quick.runs() == 3


def test_a_rebuild_is_a_rebuild(quick):
    path = native.build()
    assert native.build(rebuild=True) == path
    assert quick.runs() == 6


def test_the_folder_may_be_relative(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("FADEUP_CACHE", ".")
    assert_native()


def test_without_a_compiler_a_sound_library_that_was_put_there_is_used(sound, cache, monkeypatch, tmp_path):
    cache.mkdir(mode=0o700)
    shutil.copy(sound, cache)
    no_compiler(monkeypatch, tmp_path)
    assert_native()


def test_import_neither_builds_nor_loads_it_nor_imports_anything(tmp_path):
    code = """
import sys, torch
before = set(sys.modules)
from fadeup import *
from fadeup.kernels import native
assert native._loaded is None
new = {name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names}
print(sorted(name for name in new if not name.startswith("fadeup")))
"""
    compiler = fake_compiler(tmp_path, "exit 1")
    environment = os.environ | {"FADEUP_CACHE": str(tmp_path / "cache"), "CXX": str(compiler.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert compiler.runs() == 0
    assert not (tmp_path / "cache").exists()


# ---- what lies in the cache and is not what it should be ----


def of_another_mark(content: bytes) -> bytes:
    return native._sealed(content[:-32], "another CPU")


def linked(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o700)


SPOILED = {
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "of another CPU": lambda path: path.write_bytes(of_another_mark(path.read_bytes())),
    "writable by the group": lambda path: path.chmod(0o720),
    "writable by others": lambda path: path.chmod(0o702),
    "readable by the group": lambda path: path.chmod(0o740),
    "readable by others": lambda path: path.chmod(0o704),
    "a link to a sound one": linked,
    "a pipe": a_pipe,
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_file_that_is_not_sound_is_built_again_and_never_loaded(quick, spoil):
    path = native.build()
    SPOILED[spoil](path)
    assert_native()  # garbage would not load, and a library loads only once by a name
    assert quick.runs() == 6
    assert path.lstat().st_mode & 0o777 == 0o700
    assert not path.is_symlink()


@pytest.mark.parametrize("spoil", [spoil for spoil in SPOILED if spoil != "gone"])
def test_without_a_compiler_a_file_that_is_not_sound_is_not_used(sound, cache, monkeypatch, tmp_path, spoil):
    cache.mkdir(mode=0o700)
    SPOILED[spoil](Path(shutil.copy(sound, cache)))
    no_compiler(monkeypatch, tmp_path)
    assert_falls_back("there is no C.. compiler")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_built_again(quick):
    os.chown(native.build(), 12345, -1)
    assert native.build().stat().st_uid == os.getuid()
    assert quick.runs() == 6


def test_another_cpu_gets_a_library_of_its_own(quick, monkeypatch):
    path = native.build()
    monkeypatch.setattr(native, "cpu", lambda: "another")
    other = native.build()
    assert other != path
    assert quick.runs() == 6
    shutil.copy(path, other)  # by whatever accident
    native.build()
    assert quick.runs() == 9


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777], ids=oct)
def test_a_folder_that_others_can_write_to_is_refused(quick, cache, mode):
    native.build()
    cache.chmod(mode)
    assert_falls_back(f"the cache folder {cache} must belong to this user and be writable by nobody else: chmod 700")


# ---- libraries that come with the package ----

V3, V4 = "x86-64-v3", "x86-64-v4"


@pytest.fixture
def ship(raw, cache, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Puts a library into the package; the CPU is one of the highest level."""
    monkeypatch.setattr(native, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setattr(native, "cpu", lambda: " ".join(native.LEVELS[V4]))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.28"))

    def put(name: str, level: str = "") -> Path:
        path = native.PREBUILT / f"native-{name}.so"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(native._sealed((tmp_path / "raw.so").read_bytes(), native._level_mark(level or name)))
        return path

    return put


def test_the_library_of_the_highest_level_is_used_and_nothing_is_compiled(ship, compile_with, cache):
    compiler = compile_with("exit 1")
    ship(V3)
    best = ship(V4)
    assert native.build() == best
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute()
    assert native.library().level == V4
    assert compiler.runs() == 0
    assert not cache.exists()


@pytest.mark.parametrize("lacks", sorted(native.LEVELS[V4] - native.LEVELS[V3]))
def test_a_cpu_that_lacks_part_of_the_highest_level_gets_the_next(ship, monkeypatch, lacks):
    ship(V4)
    lower = ship(V3)
    monkeypatch.setattr(native, "cpu", lambda: " ".join(native.LEVELS[V4] - {lacks}))
    assert native.build() == lower


@pytest.mark.parametrize("lacks", sorted(native.LEVELS[V3]))
def test_a_cpu_below_all_levels_gets_its_own(ship, quick, cache, monkeypatch, lacks):
    ship(V4)
    ship(V3)
    monkeypatch.setattr(native, "cpu", lambda: " ".join(native.LEVELS[V4] - {lacks}))
    assert native.build().parent == cache
    assert quick.runs() == 3


def test_without_glibc_they_are_not_used(ship, quick, cache, monkeypatch):
    ship(V4)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert native.build().parent == cache


def edit_the_source(path: Path, monkeypatch) -> None:
    edited = path.with_name("native.cpp")
    edited.write_text(native.SOURCE.read_text() + "\n")
    monkeypatch.setattr(native, "SOURCE", edited)


STALE = {
    "the source was edited": edit_the_source,
    "other flags": lambda path, monkeypatch: monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g")),
    "other tuning": lambda path, monkeypatch: monkeypatch.setattr(native, "TUNE", "-mtune=generic"),
    "one bit": lambda path, monkeypatch: SPOILED["one bit"](path),
    "truncated": lambda path, monkeypatch: SPOILED["truncated"](path),
    "writable by others": lambda path, monkeypatch: path.chmod(0o757),
    "gone": lambda path, monkeypatch: path.unlink(),
}


@pytest.mark.parametrize("way", STALE)
def test_a_stale_one_is_not_used(ship, quick, cache, monkeypatch, way):
    STALE[way](ship(V4), monkeypatch)
    assert native.build().parent == cache
    assert quick.runs() == 3


def test_one_of_another_level_is_not_used(ship, quick, cache):
    ship(V4, V3)
    assert native.build().parent == cache


def test_whoever_installed_the_package_and_however_they_are_used(ship):
    path = ship(V4)
    path.chmod(0o464)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    linked(path)
    assert native.build() == path


def test_one_that_was_compiled_for_this_cpu_goes_before_them(ship, quick):
    shipped = ship(V4)
    built = native.build(rebuild=True)
    assert quick.runs() == 3
    assert native.build() == built != shipped
    assert native.library().level is None
    SPOILED["one bit"](built)
    assert native.build() == shipped


def test_a_cache_that_cannot_be_used_does_not_matter_to_them(ship, quick, cache):
    shipped = ship(V4)
    native.build(rebuild=True)
    cache.chmod(0o770)
    assert native.build() == shipped


def test_what_is_compiled_for_a_level_is_used_there(ship, raw, tmp_path, compile_with):
    compiler = compile_with(f'echo "$@" >> "$0.words"\n{TO_OUTPUT}cp {raw} "$output"')
    native.PREBUILT.mkdir()
    path = native.prebuild(V3, native.PREBUILT, "-DMORE")
    words = Path(f"{compiler.path}.words").read_text().splitlines()
    assert len(words) == 3
    assert all(f"-march={V3} {native.TUNE} -DMORE" in line for line in words)
    assert native.build() == path == native.PREBUILT / f"native-{V3}.so"


def test_without_a_compiler_none_is_compiled_for_a_level(cache, monkeypatch, tmp_path):
    no_compiler(monkeypatch, tmp_path)
    with pytest.raises(native.BuildError, match=r"there is no C.. compiler"):
        native.prebuild(V3, tmp_path)


def test_the_doctor_tells_where_the_library_is_from(ship, quick, monkeypatch, tmp_path):
    shipped = ship(V4)
    found = doctor.diagnose()
    assert found["prebuilt"] == V4
    assert f"library      {shipped} (came with the package, for x86-64-v4 CPUs)" in doctor.render(found)
    with monkeypatch.context() as without:
        no_compiler(without, tmp_path)
        assert "compiler     none, and none is needed" in doctor.render(doctor.diagnose())
    path, _ = doctor.build()
    assert path == shipped
    monkeypatch.setattr(native, "_loaded", None)
    built, _ = doctor.build(rebuild=True)
    found = doctor.diagnose()
    assert found["prebuilt"] is None
    assert f"library      {built} (built for this CPU)" in doctor.render(found)


# ---- FADEUP_JIT ----


def test_jit_0_says_what_is_missing_and_compiles_nothing(quick, cache, monkeypatch):
    monkeypatch.setenv("FADEUP_JIT", "0")
    missing = "FADEUP_JIT=0 forbids compiling, and neither the package nor the cache has a library for this CPU"
    assert_falls_back(missing, "set FADEUP_JIT=1, which allows to compile them")
    assert quick.runs() == 0
    assert not cache.exists()
    with pytest.raises(native.BuildError, match=r"^FADEUP_JIT=0 forbids compiling$"):
        native.build(rebuild=True)
    told = " ".join(doctor.render(doctor.diagnose()).split())
    assert f"because {missing} to do set FADEUP_JIT=1, which allows to compile them" in told
    assert "; FADEUP_JIT forbids its use)" in told
    assert main(["doctor", "--build"]) == 1


def test_jit_0_uses_what_any_compiler_put_into_the_cache(quick, compile_with, monkeypatch):
    path = native.build()
    compile_with("exit 1")
    monkeypatch.setenv("FADEUP_JIT", "0")
    assert native.build() == path
    assert_native()


def test_jit_0_uses_what_came_with_the_package(ship, quick, monkeypatch):
    shipped = ship(V3)
    monkeypatch.setenv("FADEUP_JIT", "0")
    assert native.build() == shipped
    assert native.problem() is None
    assert quick.runs() == 0


@pytest.mark.parametrize("value", ["", " ", "1", " 1 "])
def test_jit_1_is_as_without_it(quick, monkeypatch, value):
    monkeypatch.setenv("FADEUP_JIT", value)
    assert_native()


@pytest.mark.parametrize("value", ["2", "no", "false"])
def test_jit_of_another_value_is_refused(quick, monkeypatch, value):
    monkeypatch.setenv("FADEUP_JIT", value)
    assert_falls_back(f"FADEUP_JIT must be 0 or 1, got {value}", "set FADEUP_JIT=1")
    assert quick.runs() == 0


# ---- no compiler, or one that does not do its work ----


def test_without_a_compiler_one_warning_says_what_to_install(cache, monkeypatch, tmp_path):
    no_compiler(monkeypatch, tmp_path)
    assert_falls_back("there is no C.. compiler")


@pytest.mark.parametrize("command", ["/nonexistent/g++ -O1", "no-such-compiler", "''"])
def test_a_compiler_that_is_not_there_is_named(cache, monkeypatch, command):
    monkeypatch.setenv("CXX", command)
    assert_falls_back(f"CXX={command} was not found".replace("+", r"\+"))


def test_a_command_of_the_compiler_that_is_no_command_is_named(cache, monkeypatch):
    monkeypatch.setenv("CXX", "g++ '-O1")
    assert_falls_back("CXX=g.. '-O1")


def test_a_compiler_that_cannot_be_run_is_named(cache, tmp_path, monkeypatch):
    broken = tmp_path / "c++"
    broken.write_bytes(b"\x7fELF" + bytes(100))
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    assert_falls_back(str(broken).replace("+", r"\+"))


UNABLE = {
    "complains": (
        "echo 'x.cpp: In function:\nx.cpp:1: error: it is Monday'; exit 1",
        "failed: x.cpp:1: error: it is Monday",
    ),
    "complains in its own words": ("echo no licence >&2; exit 1", "failed: no licence"),
    "says nothing": ("exit 3", "failed: exit code 3"),
    "crashes": ("kill -9 $$", "failed: exit code -9"),
    "prints rubbish and makes nothing": ("head -c 300000 /dev/urandom", "it made no library"),
    "makes rubbish": (f'{TO_OUTPUT}head -c 5000 /dev/urandom > "$output"', "(it made no library|cannot be loaded)"),
    "makes an empty file": (f'{TO_OUTPUT}: > "$output"', "(it made no library|cannot be loaded)"),
    "makes a folder": (f'{TO_OUTPUT}mkdir -p "$output"', "it made no library"),
    "has no room": ("echo 'error: No space left on device'; exit 1", "No space left on device"),
}


@pytest.mark.parametrize("way", UNABLE)
def test_a_compiler_that_fails_is_reported_and_nothing_is_left(compile_with, cache, way):
    script, reason = UNABLE[way]
    compile_with(script)
    assert_falls_back(f".*{reason}")
    assert not list(cache.glob("build-*"))


def test_a_compiler_that_made_rubbish_once_gets_another_chance(raw, compile_with, monkeypatch):
    compiler = compile_with(f'{TO_OUTPUT}[ -e "$0.works" ] && cp {raw} "$output" || echo rubbish > "$output"')
    assert native.problem()
    Path(f"{compiler.path}.works").touch()
    monkeypatch.setattr(native, "_loaded", None)  # the next start
    assert_native()


HANGS = {
    "itself": "exec sleep 600",
    "in one half": 'case "$*" in *PART=2*) exec sleep 600;; esac',
    "in the other half": 'case "$*" in *PART=1*) exec sleep 600;; esac',
    "in a child": "sleep 600 & echo $! >> $0.children; wait",
    "in a child that it left behind": "sleep 600 & echo $! >> $0.children; exit 0",
}


@pytest.mark.parametrize("way", HANGS)
def test_a_compiler_that_hangs_is_stopped_with_its_children(compile_with, cache, monkeypatch, way):
    monkeypatch.setattr(native, "BUILD_SECONDS", 1)
    compiler = compile_with(HANGS[way])
    start = time.monotonic()
    assert_falls_back(".* did not finish within 1 s")
    assert time.monotonic() - start < 10
    children = Path(f"{compiler.path}.children")
    pids = [*compiler.log.read_text().split(), *(children.read_text().split() if children.exists() else ())]
    assert len(pids) >= 2
    time.sleep(0.1)  # a killed process is there until its parent has looked
    alive = [int(pid) for pid in pids if is_alive(int(pid))]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive
    assert not list(cache.glob("build-*"))


def test_the_reason_is_found_once_and_repeating_it_costs_no_memory(compile_with):
    compiler = compile_with("exit 3")

    def depth() -> int:
        with pytest.raises(native.BuildError) as error:
            native.library()
        return len(traceback.extract_tb(error.value.__traceback__))

    depth()
    assert depth() == depth()
    assert compiler.runs() == 2 * len(native.CPU_FLAGS)


# ---- a folder that cannot be used ----


def test_a_folder_below_a_file_is_named(cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FADEUP_CACHE", str(tmp_path / "file" / "sub"))
    assert_falls_back(f"the cache folder {tmp_path}/file/sub cannot be used: .* set FADEUP_CACHE to another")


def test_a_home_that_nobody_knows_is_named(cache, monkeypatch):
    monkeypatch.setenv("FADEUP_CACHE", "~no-such-user/cache")
    assert_falls_back("the cache folder ~no-such-user/cache cannot be used: .* set FADEUP_CACHE to another")


@not_as_root
def test_a_folder_that_is_read_only_is_named(quick, cache):
    cache.mkdir(mode=0o500)
    assert_falls_back(f"the cache folder {cache} cannot be used: .*Permission denied.* set FADEUP_CACHE to another")


@not_as_root
def test_a_folder_that_is_read_only_serves_what_is_in_it(quick, cache):
    native.build()
    cache.chmod(0o500)
    assert_native()


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room_to_write(path, mode="r", **options):
    return no_room() if "w" in mode else open(path, mode, **options)


@pytest.mark.parametrize(
    ("owner", "name", "fails"),
    [
        (Path, "mkdir", no_room),
        (Path, "open", no_room_to_write),
        (tempfile, "mkdtemp", no_room),
        (native.os, "fsync", no_room),
        (Path, "replace", no_room),
    ],
    ids=["folder", "lock and library", "work", "flush", "rename"],
)
def test_a_full_disk_is_named_and_nothing_is_left(quick, cache, monkeypatch, owner, name, fails):
    with monkeypatch.context() as full:
        full.setattr(owner, name, fails)
        assert_falls_back(f"the cache folder {cache} cannot be used: .*No space left on device.* set FADEUP_CACHE")
    assert not cache.exists() or left_over(cache) == []
    monkeypatch.setattr(native, "_loaded", None)
    assert_native()


# ---- interruptions, and other processes ----


def test_ctrl_c_stops_the_build_leaves_nothing_and_the_next_start_builds(quick, cache, tmp_path):
    (tmp_path / "hanging").mkdir()
    hanging = fake_compiler(tmp_path / "hanging", "exec sleep 600")
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # by a shell's job it is not
    command = [sys.executable, "-c", f"{heeded}; from fadeup.kernels import native; native.build()"]
    environment = os.environ | {"CXX": str(hanging.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while hanging.runs() < 2 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    complaint = process.communicate(timeout=20)[1]
    assert process.returncode == -signal.SIGINT
    assert complaint.splitlines()[-1] == "KeyboardInterrupt"
    assert not [pid for pid in hanging.log.read_text().split() if is_alive(int(pid))]
    assert left_over(cache) == []
    assert_native()
    assert quick.runs() == 3


def test_a_process_that_holds_the_lock_for_ever_is_not_waited_for(quick, cache, monkeypatch):
    monkeypatch.setattr(native, "BUILD_SECONDS", 1)
    cache.mkdir(mode=0o700)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_native()


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # Python 3.12 warns of any fork beside threads
def test_a_child_forked_during_a_build_does_not_keep_the_lock(cache):
    cache.mkdir(mode=0o700)
    with native._lock(cache):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        with (cache / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ---- sanitizers ----

SANITIZE = ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")  # -O1 takes three times as long
# The sanitizer does not see masked loads, which only AVX-512 has.
CPU_FLAGS = ("-march=native", "-mno-avx512f") if platform.machine() == "x86_64" else ()


@dataclass(frozen=True)
class Sanitized:
    """The kernels under AddressSanitizer and UBSan, and how to run Python with them."""

    library: Path
    environment: dict[str, str]

    def run(self, code: str) -> subprocess.CompletedProcess:
        tests = Path(__file__).parent
        start = f"import sys; sys.path[:0] = {[str(tests), str(tests.parent)]}\n"
        start += "import torch; torch.set_num_threads(1)\nfrom pathlib import Path; from fadeup.kernels import native\n"
        start += f"native.build = lambda: Path({str(self.library)!r})\n"
        command = [sys.executable, "-c", start + code]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> Sanitized:
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    asked = [*COMPILER, "-print-file-name=libasan.so"]
    preload = Path(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
    if not preload.is_absolute() or not preload.exists():
        pytest.skip("the compiler has no libasan.so that could be loaded before Python")
    library = tmp_path_factory.mktemp("sanitized") / "native.so"
    flags = ["-std=c++17", "-fPIC", "-shared", "-fopenmp-simd", *CPU_FLAGS, *SANITIZE]
    subprocess.run([*COMPILER, *flags, str(native.SOURCE), "-o", str(library)], check=True)
    environment = os.environ | {"LD_PRELOAD": str(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    return Sanitized(library, environment)


@pytest.mark.slow
def test_every_path_is_clean_under_the_sanitizers(sanitized):
    done = sanitized.run("""
import test_native as tests
for case in tests.COVER[::4]:
    tests.test_every_path_matches_reference_within_its_own_rounding(*case)
    tests.test_every_path_of_window_dot_matches_reference_within_its_own_rounding(*case)
print(native.library().path)
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sanitized.library)


@pytest.mark.slow
def test_the_sanitizers_would_see_a_read_beyond_a_map(sanitized):
    done = sanitized.run("""
decoder, logits = torch.ones(1, 6, 4, 5), torch.ones(1, 9, 10, 10)
out = torch.empty(1, 6, 10, 10)
too_high = (1, 6, 5, 5)
native._call(decoder, too_high, (10, 10), 3, False, out, (logits, None, None, None, out, *[None] * 6), False)
""")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
