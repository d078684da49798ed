"""`fadeup bench --device cuda`: with stand-ins for torch.cuda where there is no GPU, and a real case where there is."""

import json
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from fadeup.bench import case as cases
from fadeup.bench import command, environment, gpu, tables, view
from fadeup.bench.case import Case, check, default_peers, floor_work, moved_bytes, peers_of, prepare
from fadeup.bench.run import Settings, run_case
from fadeup.bench.targets import per_pixel
from fadeup.cli import main
from fadeup.kernels import eager, native

GPU = {
    **{"name": "Test GPU", "capability": "9.0", "cuda": "13.0"},
    **{"driver": "580.65.06", "triton": "3.5.0", "mmcv": None},
}
TINY = Settings(seconds=0.01, force=True)
SMALL = ["--channels", "8", "--size", "4", "--seconds", "0.01", "--threads", "1", "--force"]


class Pack(nn.Sequential):
    """In place of mmcv's CARAFEPack."""

    def __init__(self, channels: int, scale_factor: int, **options: int):
        super().__init__(nn.Conv2d(channels, channels, 1), nn.Upsample(scale_factor=scale_factor))
        self.options = options


@pytest.fixture
def mmcv(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv.ops", SimpleNamespace(CARAFEPack=Pack))


@pytest.fixture
def no_mmcv(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)


class Stream:
    """In place of a GPU: Python takes 10 µs to launch a kernel, which runs when all before it have."""

    def __init__(self):
        self.python = self.free = 0.0

    def launch(self, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            self.python += 1e-5
            self.free = max(self.free, self.python) + seconds

    def wait(self) -> None:
        self.python = max(self.python, self.free)

    def make_event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, stream: Stream):
        self.stream, self.reached = stream, float("inf")

    def record(self) -> None:
        self.reached = max(self.stream.free, self.stream.python)

    def query(self) -> bool:
        return self.stream.python >= self.reached

    def elapsed_time(self, end: "Event") -> float:
        return (end.reached - self.reached) * 1e3


@pytest.fixture
def stream(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Event", stream.make_event)
    monkeypatch.setattr(torch.cuda, "synchronize", stream.wait)
    return stream


@pytest.fixture
def clock(stream, monkeypatch):
    """A clock whose writes take 100 µs each."""
    monkeypatch.setattr(gpu, "FLUSHED_BYTES", 1)
    clock = gpu.Clock(torch.device("cpu"))
    monkeypatch.setattr(clock, "written", SimpleNamespace(zero_=lambda: stream.launch(1e-4)))
    return clock


class ClockEvent(Event):
    """For whole cases, whose calls take real time on the CPU: the stream is Python itself."""

    def __init__(self, enable_timing: bool):
        super().__init__(Stream())

    def record(self) -> None:
        self.reached = time.perf_counter()

    def query(self) -> bool:
        return False


@pytest.fixture
def stand_in(monkeypatch, no_mmcv):
    """The CPU in place of a GPU, with the native kernels in place of Triton's."""
    monkeypatch.setattr(torch.cuda, "Event", ClockEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(gpu, "FLUSHED_BYTES", 1)
    monkeypatch.setattr(gpu, "problem", lambda dtype: None)
    monkeypatch.setattr(gpu, "describe", lambda: GPU)
    monkeypatch.setattr("fadeup.bench.run.COPIED_BYTES", 2**20)
    monkeypatch.setattr("fadeup.bench.run.TURN_SECONDS", 1e-3)
    monkeypatch.setitem(cases.DEVICES, "cuda", torch.device("cpu"))
    monkeypatch.setitem(cases.IMPLEMENTATIONS, "triton", "native")


# ---- what is refused ----


def test_hidden_gpu_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(command, "_measure", lambda *arguments: pytest.fail("something was measured"))
    assert main(["bench", "fade", "--device", "cuda"]) == 2
    told = "fadeup bench: --device must be cpu here, got cuda: torch sees no GPU (CUDA_VISIBLE_DEVICES is '')"
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize(
    ("cuda", "visible", "reason"),
    [
        (None, None, r"\(torch \S+ is built without CUDA\); install a build with it, see https://pytorch.org"),
        ("13.0", "", r"\(CUDA_VISIBLE_DEVICES is ''\); unset it, or name a GPU that is there"),
        ("13.0", None, r"\(there is none, or no driver for it\); nvidia-smi must list one"),
    ],
)
def test_reason_why_there_is_no_gpu_is_told(cuda, visible, reason, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert re.match(f"torch sees no GPU {reason}", gpu.problem() or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "tpu"], "--device must be one of 'cpu', 'cuda', got 'tpu'"),
        (["--device", "cuda", "--targets"], "--device must be cpu with --targets, which measure the CPU's kernels"),
        (["--device", "cuda", "--curves", "--networks"], "--device must be cpu with --curves, --networks, which"),
        (["--device", "cuda", "--dtype", "int8"], "dtype must be one of 'float32', 'bfloat16', 'float16', got 'int8'"),
        (["--device", "cuda", "--peers", "native"], "peers must be one of 'triton', 'unfold', "),
        (["--device", "cuda", "--peers", "mmcv"], "peers must be without mmcv here, got 'mmcv', whose operators"),
        (["--peers", "mmcv"], "on the CPU, got 'mmcv', whose CARAFE is for CUDA only: use --device cuda"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(options, message, stand_in, monkeypatch, capsys):
    monkeypatch.setattr(command, "_measure", lambda *arguments: pytest.fail("something was measured"))
    for operators in ([], ["carafe"]):
        assert main(["bench", *operators, *options]) == 2
        assert message in capsys.readouterr().err


def test_type_that_the_gpu_lacks_is_refused(stand_in, monkeypatch, capsys):
    old = {torch.bfloat16: "Test GPU has compute capability 7.5 and bfloat16 needs 8.0"}
    monkeypatch.setattr(gpu, "problem", lambda dtype: old.get(dtype))
    assert main(["bench", "fade", "--device", "cuda", "--dtype", "float32", "bfloat16"]) == 2
    assert "--device must be cpu here, got cuda: Test GPU has compute capability 7.5" in capsys.readouterr().err


# ---- peers ----


ON_CUDA = ("triton", "unfold", "unfold-compiled", "eager", "bilinear", "dysample")


def test_default_peers_are_those_of_the_device(mmcv, monkeypatch):
    assert default_peers("cpu") == ("native", "unfold", "eager", "bilinear", "dysample")
    assert default_peers("cuda") == (*ON_CUDA, "mmcv")
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)  # importing it fails
    assert default_peers("cuda") == ON_CUDA


def test_mmcv_has_carafe_only_and_not_in_bfloat16(mmcv):
    assert peers_of(Case("carafe", device="cuda"), ["mmcv"]) == ["triton", "mmcv"]
    assert peers_of(Case("fade", device="cuda"), ["mmcv"]) == ["triton"]
    assert peers_of(Case("carafe", dtype="float16", device="cuda"), ["mmcv"]) == ["triton", "mmcv", "triton-f32"]
    assert peers_of(Case("carafe", dtype="bfloat16", device="cuda"), ["mmcv"]) == ["triton", "triton-f32"]


def test_own_is_the_fused_implementation_of_the_device():
    assert Case("fade").own == "native"
    assert Case("fade", device="cuda").own == "triton"
    assert Case("dysample", device="cuda").own == "plain"


def test_mmcv_gets_contiguous_maps_and_the_papers_sizes(mmcv, monkeypatch):
    monkeypatch.setitem(cases.DEVICES, "cuda", torch.device("cpu"))
    work = prepare(Case("carafe", 8, 4, batch=2, device="cuda", passes="forward+backward"), "mmcv")
    (decoder,) = work.inputs
    assert decoder.is_contiguous()
    assert work.grad is not None
    assert work.grad.is_contiguous()
    assert isinstance(work.function, Pack)
    assert work.function.options["compressed_channels"] == 64
    assert work.function(decoder).shape == (2, 8, 8, 8)


# ---- batch ----


def test_batch_multiplies_maps_bytes_and_arithmetic():
    one, three = Case("reassemble", 8, 4), Case("reassemble", 8, 4, batch=3)
    single, triple = prepare(one, "native"), prepare(three, "native")
    assert all(x.shape[0] == 3 for x in triple.inputs)
    assert moved_bytes(three, triple) == 3 * moved_bytes(one, single)
    assert floor_work(three, triple) == tuple(3 * n for n in floor_work(one, single))
    assert three.window_bytes() == 3 * one.window_bytes()
    result = {"case": {"side": 4, "scale": 2, "batch": 3}, "own": "native", "peers": {"native": {"median_ms": 1.92}}}
    assert per_pixel(result) == pytest.approx(1.92e6 / (3 * 64))


def test_command_takes_several_batches(tmp_path):
    path = tmp_path / "bench.json"
    assert (
        main(["bench", "carafe", *SMALL, "--no-memory", "--batch", "1", "2", "--peers", "eager", "--json", str(path)])
        == 0
    )
    assert [result["case"]["batch"] for result in json.loads(path.read_text())["cases"]] == [1, 2]


# ---- time ----


def test_clock_measures_the_gpu_and_no_launch(stream, clock):
    assert clock(lambda: stream.launch(2e-5)) == pytest.approx(2e-5)
    assert clock.writes == 1
    assert clock(lambda: stream.launch(1e-6, times=50)) == pytest.approx(50e-6)  # whose launches take 500 µs
    assert clock.writes == 8
    assert clock(lambda: stream.launch(0.1)) == pytest.approx(0.1)


def test_call_that_waits_is_measured_with_its_launches(stream, clock):
    def call():
        stream.wait()
        stream.launch(1e-6)

    assert clock(call) == pytest.approx(11e-6)
    assert clock.writes == gpu.MOST_WRITES


# ---- memory ----


def test_memory_is_what_the_allocator_counts_in_the_second_call(monkeypatch, stream):
    now, most, called = 100, 0, 0  # MiB

    def call():
        nonlocal now, most, called
        called += 1
        now += 5 if called == 1 else 0  # stays
        most = max(most, now + (70 if called == 1 else 20))  # a large workspace once

    def reset():
        nonlocal most
        most = now

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: now * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: most * 2**20)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    assert gpu.measure_memory(call) == {"peak_mib": 20, "kept_mib": 5}
    assert called == 2


# ---- precision ----


def precisions() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_precision_is_as_before_afterwards():
    products, convolutions = precisions()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(KeyError), gpu.full_precision():  # noqa: PT012 - what is seen inside
            assert precisions() == ("ieee", "ieee")
            raise KeyError
        assert precisions() == ("tf32", convolutions)
    finally:
        torch.backends.cuda.matmul.fp32_precision = products


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_check_on_a_gpu_is_without_tf32(device, stand_in, monkeypatch):
    right, seen = eager.reassemble, []

    def reassemble(*maps):
        seen.append(precisions())
        return right(*maps)

    monkeypatch.setattr(eager, "reassemble", reassemble)
    before = precisions()
    check(Case("fade", 8, 4, device=device), ["eager"])
    assert seen == [before if device == "cpu" else ("ieee", "ieee")]


# ---- whole cases ----


@pytest.mark.parametrize("passes", ["forward", "forward+backward", "backward"])
@pytest.mark.parametrize("operator", ["fade", "reassemble"])
def test_case_is_checked_and_measured_on_a_stand_in(operator, passes, stand_in, monkeypatch):
    monkeypatch.setattr(native, "peak", lambda: pytest.fail("the CPU's peak was measured"))
    monkeypatch.setattr("fadeup.bench.run.fresh_python", lambda *words: pytest.fail("a process was started"))
    result = run_case(
        Case(operator, 8, 4, passes=passes, batch=2, device="cuda"), ("unfold", "eager", "bilinear"), TINY
    )
    assert result["refused"] is None
    assert result["own"] == "triton"
    assert result["checked"].keys() == {"triton", "eager"}
    assert list(result["peers"]) == ["triton", "unfold", "eager", "bilinear"]
    assert all(peer["median_ms"] > 0 and peer["peak_mib"] == 3 for peer in result["peers"].values())
    assert (result["floor"] is not None) == (operator == "reassemble")
    if result["floor"]:
        assert result["floor"]["bound"] == "memory"
        assert result["floor"]["peak_gmac_s"] is None


def test_tables_name_the_gpu_and_what_is_unusual(stand_in, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    options = ["--device", "cuda", "--batch", "1", "2", "--peers", "bilinear", "--json", str(path)]
    assert main(["bench", "reassemble", *SMALL, *options]) == 0
    shown = capsys.readouterr().out
    assert "Test GPU (compute capability 9.0, CUDA 13.0, driver 580.65.06, Triton 3.5.0);" in " ".join(shown.split())
    assert "batch 2, cuda" in shown
    assert main(["bench", "--tables", str(path)]) == 0
    text = capsys.readouterr().out
    assert "Test GPU (compute capability 9.0" in text
    assert "| 8 × 4² → 8² | float32, channels last, cuda | forward | triton |" in text
    assert "| 8 × 4² → 8² | float32, channels last, batch 2, cuda | forward | triton |" in text
    assert "| forward | float32, batch 2, cuda | 8 × 4² → 8² |" in text
    assert "| memory |" in text
    assert str(Case("fade", batch=2, device="cuda")).endswith("forward, batch 2, cuda")
    assert str(Case("fade")).endswith("float32, channels_last, forward")


def test_files_without_batch_and_device_are_read_as_before(tmp_path, capsys):
    path = tmp_path / "bench.json"
    command = ["bench", "reassemble", *SMALL, "--no-memory", "--peers", "eager", "--json", str(path)]
    assert main(command) == 0
    results = json.loads(path.read_text())
    new = tables.markdown(tables.read(path))
    assert "gpu" not in results["environment"]
    for result in results["cases"]:
        del result["case"]["batch"], result["case"]["device"]
    path.write_text(json.dumps(results | {"curves": {"pixels": results["cases"], "channels": []}}))
    old = tables.read(path)
    assert old["curves"]["pixels"][0]["case"]["device"] == "cpu"
    assert tables.markdown(old | {"curves": None}) == new
    assert "cpu" not in new
    view.show(old, Console(quiet=True))


def test_environment_describes_the_gpu_only_where_it_was_used(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder@host)"
    monkeypatch.setattr(gpu, "DRIVER", tmp_path / "version")
    found = environment("cuda")["gpu"]
    assert found["driver"] is None
    (tmp_path / "version").write_text(text)
    found = environment("cuda")["gpu"]
    assert (found["name"], found["capability"], found["driver"]) == ("Test GPU", "9.0", "580.65.06")
    assert found.keys() == GPU.keys()
    assert "gpu" not in environment()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_command_measures_on_a_gpu(tmp_path):
    path = tmp_path / "gpu.json"
    options = ["--device", "cuda", "--batch", "2", "--peers", "unfold", "eager", "bilinear", "--json", str(path)]
    passes = ["--pass", "forward", "forward+backward", "backward"]
    assert main(["bench", "reassemble", "carafe", *SMALL, *options, *passes]) == 0
    results = tables.read(path)
    assert results["environment"]["gpu"]["name"]
    for result in results["cases"]:
        assert result["checked"].keys() == {"triton", "eager"}
        assert all(0 < peer["q1_ms"] <= peer["median_ms"] for peer in result["peers"].values())
        assert all(peer["peak_mib"] > 0 for peer in result["peers"].values())
        assert (result["floor"] is None) == (result["case"]["operator"] == "carafe")
