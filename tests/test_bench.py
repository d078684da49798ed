import functools
import itertools
import json
import operator
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fadeup.bench import commit_of, environment, measure, peak_memory, quiet, tables, targets
from fadeup.bench.case import (
    PASSES,
    Case,
    DisagreementError,
    check,
    checked_side,
    floor_work,
    moved_bytes,
    peers_of,
    prepare,
)
from fadeup.bench.run import Settings, memory_of, run_case, take_turns, thread_count
from fadeup.cli import main
from fadeup.kernels import eager, native, reference

ROOT = Path(__file__).parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="read from Linux's /proc")
TINY = Settings(seconds=0.01, memory=False, force=True)


@LINUX
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


def test_environment_says_what_numbers_depend_on():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert found["cpu"]


# ---- cases ----


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("operator", ["fade", "reassemble"])
def test_case_is_checked_and_measured(operator, layout, passes):
    case = Case(operator, 8, 4, layout=layout, passes=passes)
    result = run_case(case, ("unfold", "eager", "bilinear"), TINY)
    assert result["refused"] is None
    assert result["checked"].keys() == {"native", "eager"}
    assert all(share <= 1 for share in result["checked"].values())
    assert list(result["peers"]) == ["native", "unfold", "eager", "bilinear"]
    assert result["ratios"].keys() == {"unfold", "eager", "bilinear"}
    for peer in result["peers"].values():
        assert peer["rounds"] >= 3
        assert 0 < peer["q1_ms"] <= peer["median_ms"] <= peer["q3_ms"]
    assert (result["floor"] is not None) == (operator == "reassemble")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_compared_with_float32_too(dtype):
    result = run_case(Case("carafe", 8, 4, scale=4, dtype=dtype), ("bilinear", "dysample"), TINY)
    assert list(result["peers"]) == ["native", "bilinear", "dysample", "native-f32", "bilinear-f32"]


@pytest.mark.parametrize("operator", ["dysample", "nearest", "indexnet"])
def test_operators_of_one_implementation_are_plain(operator):
    result = run_case(Case(operator, 6, 4), ("unfold", "eager", "bilinear"), TINY)
    assert result["own"] == "plain"
    assert list(result["peers"]) == ["plain", "bilinear"]
    assert result["checked"] == {}


@pytest.mark.slow
def test_compiled_peer():
    result = run_case(Case("reassemble", 8, 4, passes="forward+backward"), ("unfold-compiled",), TINY)
    assert result["checked"].keys() == {"native", "unfold-compiled"}
    compiled = result["peers"]["unfold-compiled"]
    assert compiled["compile_s"] * 1e3 > compiled["median_ms"]
    assert "compile_s" not in result["peers"]["native"]


def test_peers_get_the_same_values():
    case = Case("fade", 8, 4, passes="forward+backward")
    own, other = prepare(case, "native").wanted, prepare(case, "unfold").wanted
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    bilinear = prepare(case, "bilinear")
    assert bilinear.inputs[0].is_contiguous()
    assert torch.equal(bilinear.inputs[0], prepare(case, "native").inputs[0])


def test_floor_counts_by_the_formula():
    case, pixels = Case("reassemble", 8, 4), 8 * 8
    work = prepare(case, "native")
    inputs = 8 * 16 + 25 * pixels + 25 * 16 + 8 * pixels + 16
    assert floor_work(case, work) == (4 * (inputs + 8 * pixels), 27 * 8 * pixels)
    back = Case("reassemble", 8, 4, passes="backward")
    assert floor_work(back, work) == (4 * (2 * inputs + 8 * pixels), 2 * 27 * 8 * pixels)
    both = Case("reassemble", 8, 4, passes="forward+backward")
    assert floor_work(both, work) == (4 * (3 * inputs + 16 * pixels), 3 * 27 * 8 * pixels)
    assert moved_bytes(both, work) == 4 * (2 * inputs + 16 * pixels)
    assert work.held_bytes() == 4 * inputs
    assert prepare(back, "native").held_bytes() == 4 * (inputs + 8 * pixels)


def test_reference_in_float64_is_run_where_it_fits():
    assert checked_side(Case("fade", 256, 64)) == 64
    assert checked_side(Case("fade", 256, 64, passes="forward+backward")) == 64
    assert checked_side(Case("fade", 256, 64, scale=8)) == 32
    assert checked_side(Case("nearest", 256, 512)) == 512


@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_wrong_result_is_refused(passes, monkeypatch):
    right = reference.reassemble
    monkeypatch.setattr(eager, "reassemble", lambda *maps: right(*maps) * 1.001)
    case = Case("fade", 8, 4, passes=passes)
    with pytest.raises(DisagreementError, match=r"fade, C = 8, .* by eager is off by .* allows"):
        check(case, ["eager"])
    result = run_case(case, ("eager",), TINY)
    assert "by eager is off by" in result["refused"]
    assert "peers" not in result
    assert tables.best_cases({"cases": [result]}) == [result]


def test_nan_is_refused(monkeypatch):
    monkeypatch.setattr(eager, "reassemble", lambda *maps: reference.reassemble(*maps) * float("nan"))
    with pytest.raises(DisagreementError, match="off by nan"):
        check(Case("carafe", 8, 4), ["eager"])


def test_refused_case_makes_the_command_fail(monkeypatch, capsys):
    monkeypatch.setattr(eager, "reassemble", lambda *maps: reference.reassemble(*maps) + 1)
    command = ["bench", "fade", "carafe", "--channels", "8", "--size", "4", "--peers", "eager", "--seconds", "0.01"]
    assert main([*command, "--no-memory", "--force", "--threads", "1"]) == 1
    out = capsys.readouterr().out
    assert len(re.findall("refused:", out)) == 2


@LINUX
def test_memory_is_taken_in_a_fresh_process():
    big = torch.ones(2**25)  # 128 MiB here do not count there
    with thread_count(1):
        found = memory_of(Case("bilinear", 8, 256), "plain")
    assert found["peak_mib"] == pytest.approx(8, abs=3)  # 8 channels of 512 x 512 in float32
    assert big.numel()


def test_memory_of_what_fails_says_why(monkeypatch):
    monkeypatch.setattr("fadeup.bench.run.asdict", lambda case: {"operator": "fade", "channels": 0})
    with pytest.raises(RuntimeError, match=r"memory of native: .*channels must be a whole number, 1 or more, got 0"):
        memory_of(Case("fade", 8, 4), "native")


def test_slow_calls_sit_rounds_out_but_three():
    ran = []
    calls = {"own": lambda: ran.append("own"), "slow": lambda: time.sleep(0.02)}
    first, rounds = take_turns(calls, "own", 0.2)
    assert first["slow"] > 0.02
    assert len(rounds["own"]) == 15 == len(rounds["slow"])
    assert None not in rounds["own"]
    assert 3 <= sum(value is not None for value in rounds["slow"]) < 15
    assert rounds["slow"][0] is not None


def test_threads_are_as_before():
    before = torch.get_num_threads()
    with thread_count(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "fad"}, "operator must be reassemble, fade, .* got 'fad'; did you mean 'fade'"),
        ({"channels": 0}, "channels must be a whole number, 1 or more, got 0"),
        ({"side": 1.5}, "side must be a whole number, 1 or more, got 1.5"),
        ({"dtype": "float64"}, "dtype must be one of 'float32', 'bfloat16', 'float16', got 'float64'"),
        ({"layout": "nhwc"}, "layout must be one of 'channels_last', 'contiguous', got 'nhwc'"),
        ({"batch": 0}, "batch must be a whole number, 1 or more, got 0"),
        ({"device": "tpu"}, "device must be one of 'cpu', 'cuda', got 'tpu'"),
        ({"passes": "both"}, "pass must be one of 'forward', 'forward.backward', 'backward', got 'both'"),
        ({"operator": "a2u", "scale": 4}, "scale must be 2 for A2U, got 4"),
    ],
)
def test_bad_cases(options, message):
    with pytest.raises(ValueError, match=message):
        Case(**{"operator": "fade"} | options)


def test_unknown_peer():
    with pytest.raises(ValueError, match=r"peers must be one of 'native', 'unfold', .* got 'numba'"):
        peers_of(Case("fade"), ["numba"])


# ---- other processes ----

BUSY = "import time\nuntil = time.time() + 60\nwhile time.time() < until: pass"


@pytest.fixture
def busy_process():
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def busy_stranger():
    """A busy process that is no child of this one: its parent ends at once."""
    start = ["sh", "-c", '"$0" -c "$1" > /dev/null 2>&1 & echo $!', sys.executable, BUSY]
    pid = int(subprocess.run(start, capture_output=True, text=True, check=True).stdout)
    yield pid
    os.kill(pid, signal.SIGKILL)


@LINUX
def test_busy_machine_is_refused_unless_forced(busy_stranger, tmp_path, capsys):
    command = ["bench", "fade", "--channels", "8", "--size", "4", "--no-memory"]
    command += ["--peers", "eager", "--seconds", "0.01", "--threads", "1", "--json", str(tmp_path / "bench.json")]
    assert main(command) == 2
    refusal = capsys.readouterr().err
    assert "other processes must use at most 10% of a core, got " in refusal
    assert f"process {busy_stranger}, " in refusal
    assert not (tmp_path / "bench.json").exists()
    assert main([*command, "--force"]) == 0
    assert "Forced: other processes may have disturbed this." in " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "bench.json").read_text())
    assert results["forced"] is True
    assert any(f"process {busy_stranger}, " in busy for busy in results["busy"])
    assert any(f"process {busy_stranger}, " in busy for busy in results["cases"][0]["busy"])


@LINUX
def test_children_do_not_count(busy_process):
    assert busy_process.pid not in [busy.pid for busy in quiet.look() or ()]


@LINUX
def test_case_is_refused_where_a_process_was_busy_meanwhile(monkeypatch):
    monkeypatch.setattr(quiet.Watch, "busy", lambda self: [quiet.Busy(7, "training", 0.5)])
    result = run_case(Case("fade", 8, 4), ("eager",), Settings(seconds=0.01, memory=False))
    assert "got training (process 7, 50% of a core) meanwhile" in result["refused"]
    assert "peers" not in result
    assert run_case(Case("fade", 8, 4), ("eager",), TINY)["busy"] == ["training (process 7, 50% of a core)"]


@LINUX
def test_case_is_run_again_once_it_is_quiet(monkeypatch):
    training = [quiet.Busy(7, "training", 0.5)]
    seen = iter([training, training, [], []])  # during the first run, then twice while waiting, then in the second run
    monkeypatch.setattr(quiet.Watch, "busy", lambda self: next(seen))
    told = []
    patient = Settings(seconds=0.01, memory=False, checked=False, wait=30)
    result = run_case(Case("fade", 8, 4), ("eager",), patient, told.append)
    assert result["refused"] is None
    assert told == ["timing", "waiting for other processes", "timing"]


def test_system_without_proc_is_not_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quiet, "PROC", tmp_path)
    assert quiet.look() is None
    command = ["bench", "carafe", "--channels", "8", "--size", "4", "--peers", "eager", "--seconds", "0.01"]
    assert main([*command, "--no-memory", "--threads", "1"]) == 0
    assert "this system does not tell what other processes do" in capsys.readouterr().out


# ---- the whole command ----


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Targets and curves at toy sizes, as JSON and as a figure."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        toy = {
            name: (Case(case.operator, 8, 4, case.scale, case.dtype, passes=case.passes), peers)
            for name, (case, peers) in targets.TARGET_CASES.items()
        }
        toy["forward"] = (toy["forward"][0], ("unfold", "eager", "bilinear"))  # without the compiler
        patch.setattr(targets, "TARGET_CASES", toy)
        patch.setattr(
            targets, "SIZE_CASES", {f"side {side}": (Case("fade", 8, 4), ()) for side in targets.TARGET_SIDES}
        )
        patch.setattr(targets, "CURVE_SIDES", (2, 4))
        patch.setattr(targets, "CURVE_CHANNELS", (4, 8))
        patch.setattr("fadeup.bench.run.COPIED_BYTES", 2**20)
        patch.setattr("fadeup.bench.run.TURN_SECONDS", 1e-3)
        patch.setattr(targets, "import_ms", lambda: 12.0)
        patch.setattr(targets, "build_seconds", lambda: 11.0)
        command = ["bench", "--targets", "--curves", "--repeat", "2", "--seconds", "0.001", "--no-memory", "--force"]
        files = ["--threads", "1", "--json", str(folder / "bench.json"), "--figure", str(folder / "bench.svg")]
        assert main([*command, *files]) == 0
    return folder


def test_targets_are_the_best_of_the_runs(small_run):
    results = json.loads((small_run / "bench.json").read_text())
    rows = {row["name"]: row for row in results["targets"]}
    assert len(rows) == len(targets.TARGETS)
    for row in rows.values():
        known = [value for value in row["values"] if value is not None]
        assert row["best"] == ((max if row["at_least"] else min)(known) if known else None)
    assert rows["import fadeup, after import torch"]["met"]
    assert not rows["building the kernels, once"]["met"]
    compiled = rows["… torch.compile(unfold) / fused"]
    assert compiled["best"] is None  # its peer was left out
    assert not compiled["met"]
    assert {result["run"] for result in results["cases"]} == {1, 2}
    assert all("checked" in result for result in results["cases"] if result["run"] == 1)


def test_figure_and_tables_follow_from_the_file(small_run, capsys, tmp_path):
    assert (small_run / "bench.svg").read_text().startswith("<?xml")
    assert main(["bench", "--tables", str(small_run / "bench.json")]) == 0
    text = capsys.readouterr().out
    assert "| building the kernels, once | ≤ 10 s | 11.00 s | 11.00 · 11.00 | **missed** |" in text
    assert "**Forced: other processes may have disturbed this.**" in text
    assert "### FADE over sizes" in text
    assert "| 4² → 8² |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count(" | ") for line in table.splitlines()}) == 1
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    for _ in range(2):  # the second time changes nothing
        assert main(["bench", "--tables", str(small_run / "bench.json"), "--into", str(page)]) == 0
        assert page.read_text() == f"before\n{tables.BEGIN}\n\n{text}\n{tables.END}\nafter\n"


def test_terminal_shows_targets_within_100_columns(small_run, capsys):
    from rich.console import Console

    from fadeup.bench import view

    view.show(tables.read(small_run / "bench.json"), Console(width=100))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    for target in targets.TARGETS:  # none is cut off
        assert any(re.match(rf"\s+{re.escape(target.name)}\s+[≥≤] [\d.]+", line) for line in lines), target.name


@pytest.mark.parametrize("name", ["bench", "networks"])
def test_documentation_has_the_numbers_of_the_file(name):
    path = ROOT / f"benchmarks/results/{name}.json"
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    between = page.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]
    expected = tables.markdown(tables.read(path)) if path.exists() else ""
    assert between.strip() == expected.strip(), "run make bench-tables"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"networks": null}', None])
def test_tables_of_another_file(content, tmp_path, capsys):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    assert main(["bench", "--tables", str(path)]) == 2
    assert "--tables must be a file that fadeup bench --json has written, got " in capsys.readouterr().err


def places(value, so_far=()):
    """Keys to everything within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield (*so_far, key)
        yield from places(held, (*so_far, key))


def tables_or_refusal(path):
    try:
        return tables.markdown(tables.read(path))
    except ValueError as error:
        return str(error)


def test_damaged_results_make_tables_or_are_named(small_run, tmp_path):
    path = tmp_path / "bench.json"
    text = (small_run / "bench.json").read_text()
    told = []
    damages = itertools.product(places(json.loads(text)), (None, "text", [], {}, "gone"))
    for (*above, key), damage in random.Random(0).sample(list(damages), 300):
        results = json.loads(text)
        holder = functools.reduce(operator.getitem, above, results)
        if damage == "gone":
            del holder[key]
        else:
            holder[key] = damage
        path.write_text(json.dumps(results))
        told.append(tables_or_refusal(path))
    refused = [answer for answer in told if f"file that fadeup bench --json has written, got {path}" in answer]
    made = [answer for answer in told if "### What was promised" in answer or "### Times and memory" in answer]
    assert len(refused) > 30
    assert len(made) > 30
    assert len(refused) + len(made) == len(told)


@pytest.mark.parametrize(
    "page", ["none", f"{tables.BEGIN}", f"{tables.END} {tables.BEGIN}", f"{tables.BEGIN * 2}{tables.END}"]
)
def test_page_without_marks_is_left_alone(page, small_run, tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text(page)
    assert main(["bench", "--tables", str(small_run / "bench.json"), "--into", str(path)]) == 2
    assert "--into must be a page with" in capsys.readouterr().err
    assert path.read_text() == page


def test_import_is_timed(monkeypatch):
    monkeypatch.setattr(targets, "IMPORTS", 1)
    assert 0 < targets.import_ms() < 60_000


@pytest.mark.slow
@pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler here")
def test_build_is_timed_in_an_empty_cache(tmp_path, monkeypatch):
    quick = tmp_path / "quick-c++"  # -O3 takes five times as long
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(native.compiler() or [])} "$@" -O0\n')
    quick.chmod(0o700)
    monkeypatch.setenv("CXX", str(quick))
    assert targets.build_seconds() > 0.1


def test_floors_are_taken_from_the_best_rates_of_all_runs():
    def run(peak: float, copy: float, ms: float) -> dict:
        floor = {
            "ms": ms,
            "bound": "arithmetic",
            "mib": 1e6 / 2**20,
            "macs": 1e6,
            "peak_gmac_s": peak,
            "copy_gb_s": copy,
        }
        return {"floor": floor | {"ratio": 2.0, "q1": 1.0, "q3": 3.0}}

    slow, fast = run(50, 20, 0.05), run(100, 40, 0.025)
    targets.steady_floors([slow, {"floor": None}, fast])
    assert slow["floor"]["ms"] == fast["floor"]["ms"] == pytest.approx(0.025)
    assert slow["floor"]["ratio"] == pytest.approx(4.0)
    assert fast["floor"]["ratio"] == pytest.approx(2.0)
    assert slow["floor"]["bound"] == "memory"


def test_a_case_that_is_there_twice_is_shown_with_all_its_peers():
    def result(own_ms: float, *peers: str) -> dict:
        times = {name: {"median_ms": own_ms, "peak_mib": None} for name in ("native", *peers)}
        return {"case": {"operator": "fade"}, "own": "native", "refused": None, "peers": times}

    for cases in ([result(2.0, "unfold"), result(1.0)], [result(1.0, "unfold"), result(2.0)]):
        (best,) = tables.best_cases({"cases": cases})
        assert list(best["peers"]) == ["native", "unfold"]
