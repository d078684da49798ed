import json
import os
import shlex
import subprocess
import sys

import pytest
import torch

import fadeup
from fadeup import doctor
from fadeup.cli import main
from fadeup.kernels import native

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler here")
WITHOUT_EXTRAS = "import sys; sys.modules['rich'] = None; from fadeup.cli import main; sys.exit(main(sys.argv[1:]))"


def run(cache, *arguments, compiler=True):
    """The command with a cache and, if not the system's, a compiler of its own."""
    environment = os.environ | {"FADEUP_CACHE": str(cache)}
    environment.pop("CXX", None)
    if not compiler:
        environment["PATH"] = ""
    elif compiler is not True:
        environment["CXX"] = str(compiler)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_EXTRAS, "doctor", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_diagnosis_here(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"fadeup       {fadeup.__version__}, torch {torch.__version__}" in out
    used = "eager" if native.problem() else "native"
    assert f"impl='auto'  {used} on the CPU" in out
    assert "\nGPU          " in out
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["implementation"] == used
    assert found["threads"] == torch.get_num_threads()


def test_without_compiler_says_what_to_install(tmp_path):
    done = run(tmp_path / "cache", compiler=False)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "impl='auto' eager on the CPU, the slower one" in words
    assert "because there is no C++ compiler" in words
    assert "to do install a C++ compiler (" in words
    assert f"cache {tmp_path / 'cache'} (FADEUP_CACHE)" in words


def test_build_without_compiler_fails_with_the_reason(tmp_path):
    done = run(tmp_path / "cache", "--build", compiler=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        "fadeup doctor: the CPU kernels could not be built: there is no C++ compiler; install a C++ compiler"
    )


@needs_compiler
@pytest.mark.slow  # two builds
def test_build_then_use_without_compiler(tmp_path):
    cache, compiler = tmp_path / "cache", tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {shlex.join(native.compiler())} "$@" -O0\n')  # a third of -O3's time
    compiler.chmod(0o700)
    done = run(cache, "--build", compiler=compiler)
    assert done.returncode == 0, done.stderr
    (library,) = cache.glob("*.so")
    assert done.stdout.startswith(f"{library} (")
    made = library.stat().st_mtime_ns
    assert run(cache, "--build", compiler=compiler).returncode == 0
    assert library.stat().st_mtime_ns == made
    found = json.loads(run(cache, "--json", compiler=False).stdout)
    assert (found["implementation"], found["library"], found["compiler"]) == ("native", str(library), None)
    assert "none; the library was put into the cache before" in run(cache, compiler=False).stdout
    rebuilt = json.loads(run(cache, "--rebuild", "--json", compiler=compiler).stdout)
    assert rebuilt["built"]["path"] == str(library)
    assert library.stat().st_mtime_ns > made


def test_folder_that_cannot_be_written_is_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file", "--build")
    assert done.returncode == 1
    assert f"the cache folder {tmp_path / 'file'} cannot be used" in done.stderr


def test_compiler_that_says_nothing(tmp_path):
    assert doctor._version(None) is None
    assert doctor._version([str(tmp_path / "none")]) is None
    assert doctor._version([sys.executable, "-c", "0"]) is None


def test_system_without_cpuinfo(monkeypatch):
    monkeypatch.setattr(doctor, "_cpu_fields", dict)
    assert doctor.vector_sets() == []
    assert doctor.cpu_model()
    assert "not listed by the system" in doctor.render(doctor.diagnose())


GPU = {"name": "Some GPU", "capability": "8.0", "implementation": "triton", "problem": None, "bfloat16": None}
GPUS = {
    "none": (None, "GPU none that torch can use (CUDA 13.0, Triton 3.8.0)"),
    "good": (
        GPU,
        "GPU Some GPU, compute capability 8.0 (CUDA 13.0, Triton 3.8.0) there impl='auto' is triton, the fused",
    ),
    "old": (
        GPU | {"problem": "too old", "implementation": "eager"},
        "(CUDA 13.0, Triton 3.8.0) there impl='auto' is eager, the slower one: too old",
    ),
    "without bfloat16": (
        GPU | {"bfloat16": "bfloat16 needs 8.0"},
        "there impl='auto' is triton, the fused kernels; in bfloat16 eager: bfloat16 needs 8.0",
    ),
}


@pytest.mark.parametrize("gpu", GPUS)
def test_the_gpu_and_what_is_used_there(gpu):
    told, words = GPUS[gpu]
    found = doctor.diagnose() | {"gpu": told, "cuda": "13.0", "triton": "3.8.0", "interpreted": False}
    assert words in " ".join(doctor.render(found).split())
    interpreted = " ".join(doctor.render(found | {"interpreted": True}).split())
    assert "TRITON_INTERPRET is set: impl='triton' runs on the CPU, slowly, as a check" in interpreted


def test_a_gpu_is_looked_at_where_torch_tells_of_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    found = doctor.diagnose()["gpu"]
    assert found["implementation"] == "triton"
    assert found["capability"] == "7.5"
    assert found["bfloat16"] == "Some GPU has compute capability 7.5 and bfloat16 needs 8.0"
