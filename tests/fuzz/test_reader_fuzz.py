"""The readers on files that were changed at random; `reader_fuzz.py` runs for longer, and is guided by coverage."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_fuzz import PIXELS, TARGETS, Target, attempt

SECONDS = 30
SLOW = ("trained", "config")
"""They build networks."""


@pytest.fixture(autouse=True, scope="module")
def small_limit():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FADEUP_MAX_PIXELS", str(PIXELS))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@st.composite
def changed(draw, seeds):
    """A valid file, a few of its places cut, doubled or overwritten."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "drop", "extreme"]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "drop":
            del content[at : at + draw(st.integers(1, 8))]
        else:
            content[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"null", b"1e99"]))
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files(name, tmp_path_factory):
    @settings(max_examples=4 if name in SLOW else 25)
    @given(content=changed(TARGETS[name].seeds()))
    def run(content):
        attempt(name, content, tmp_path_factory.mktemp("x"))

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_every_format_is_known_whole(name, tmp_path):
    """Else the fuzzer would see nothing but refusals."""
    assert any(attempt(name, seed, tmp_path / str(number)) for number, seed in enumerate(TARGETS[name].seeds()))


def rejects(text):
    def read(path):
        raise ValueError(text.format(path=path))

    return read


def leaves_a_file(path):
    path.with_name("half.part").touch()


def warns(path):
    import warnings

    warnings.warn("odd", stacklevel=1)


@pytest.mark.parametrize(
    ("read", "failure"),
    [
        (lambda path: {}["x"], KeyError),
        (rejects("{path} is bad"), AssertionError),
        (rejects("x must be good, got bad"), AssertionError),
        (rejects("{path} must be good, got " + "bad" * 1000), AssertionError),
        (leaves_a_file, AssertionError),
        (warns, AssertionError),
    ],
    ids=["KeyError", "no rule", "no file", "endless", "left over", "warning"],
)
def test_the_harness_sees(read, failure, tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "broken", Target("x.bin", list, read))
    with pytest.raises(failure):
        attempt("broken", b"", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (CPython on x86-64)")
def test_guided_by_coverage(tmp_path):
    script = Path(__file__).with_name("reader_fuzz.py")
    words = ["all", "--seconds", str(SECONDS), "--out", str(tmp_path / "out"), "--corpus", str(tmp_path / "corpus")]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    executed = int(done.stderr.split("stat::number_of_executed_units:")[1].split()[0])
    assert executed > len(TARGETS)
    assert not any((tmp_path / "out").iterdir())
