"""The readers on files that were changed at random; `reader_fuzz.py` runs for longer, and is guided by coverage."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reader_fuzz import COLORS, PIXELS, ROW, TARGETS, Target, abouts, array, attempt, configs
from safetensors.torch import save as safetensors

RUNS = 8000
"""Files, some 20 s; a number, not a time, so that no machine comes further than another."""
SLOW = ("trained", "config")
"""They build networks."""


def complex_linear():
    return {name: torch.complex(x, x).detach() for name, x in torch.nn.Linear(2, 3).state_dict().items()}


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


def lab():
    buffer = io.BytesIO()
    Image.fromarray(COLORS).convert("LAB").save(buffer, "TIFF")
    return buffer.getvalue()


def told(**changes):
    return json.dumps(json.loads(abouts()[0]) | changes).encode()


def packed(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return b"\0" + buffer.getvalue()


DEEP = b"[" * 100_000
TILE = b'[{"name": %s, "split": %s, "longitude": 1.5, "latitude": 2.5, "column": 0, "row": 0}]'
FOUND = [
    ("alpha", lab(), r"x\.png must be grey, palette, RGB or CMYK, got LAB; convert it to RGB"),
    ("set", b"\x01" * 400, r"--set must be FIELD=VALUE"),
    ("run", DEEP, r"config\.json must be JSON, got lists in lists without end"),
    ("run", b"[1]", r"config\.json must hold a configuration, got \[1\]; choose another --name"),
    ("config", DEEP, r"config\.json of .* must be JSON, got lists in lists"),
    ("config", b'"_class"', "must be a folder that save_pretrained wrote, got another kind"),
    ("config", configs()[0].replace(b'["a", "b"]', b"[1]"), r"must name its classes by a list of texts, got \[1\]"),
    ("config", configs()[0].replace(b"[2, 3]", b"[2, 0]"), "must be a whole number, 1 or more, got 0"),
    ("config", configs()[0].replace(b"[2, 3]", b"7"), "must hold arguments of Autoencoder in this version"),
    ("weights", safetensors({"a": torch.ones(1)}, {"fadeup": "[]"}), "weights that fadeup train wrote, got a list"),
    ("weights", safetensors(complex_linear(), {"fadeup": "{}"}), "must hold real values, got torch.complex64 as bias"),
    ("trained", told(task=[]), "must be of a recipe of this version"),
    ("trained", told(recipe=[]), "must be of a recipe of this version"),
    ("trained", told(recipe={"size": "x"}), "must be of a recipe of this version, got .*'x' as size"),
    ("trained", told(upsampler=None), "must tell how its network is built, got upsampler must be one of"),
    ("trained", told(without={"prefix": "a", "weights": "a.pth"}), "must leave out a trunk of 'imagenet' or 'hed'"),
    ("trained", told(scores={"psnr": "x"}), "must tell scores as numbers"),
    ("checkpoint", packed({"identity": "[]", "state": {}}), "whole checkpoint, got a list and a dict in place of dict"),
    ("official", packed({"a": torch.ones(1, dtype=torch.cfloat)}), "dictionary of tensors, got torch.complex64"),
    (
        "official",
        packed({"a": torch.ones(2).to_sparse()}),
        "got torch.float32, torch.sparse_coo on cpu as 'a'",
    ),
    ("classes", b"\xff", r"classes\.txt must be text in UTF-8, got invalid start byte at byte 0; save it anew"),
    ("class numbers", b"\xff", r"objectInfo150\.txt must be text in UTF-8"),
    ("names", b"\xff", r"names\.txt must be text in UTF-8"),
    ("names", b"../" + b"e" * 5000, r"names\.txt must name files below its data set's folder, got '\.\./e{100}"),
    ("tiles", TILE % (b'"%s"' % (b"/" * 5000), b'"train"'), r"tiles\.json must name files below its data set's folder"),
    ("tiles", TILE % (b'"a"', b"[%s1]" % (b"1," * 5000)), r"tiles\.json must have texts as names and splits, got 'a'"),
    ("checkpoint", packed({"identity": json.dumps({"task": "e" * 5000}), "state": {}}), "must be of the same training"),
    ("trained", told(fadeup="1" * 5000, task="e" * 5000), "must be of a recipe of this version"),
    ("config", configs()[0].replace(b'"max"', b'"%s"' % (b"e" * 5000)), "pooling must be 'max' or 'guided', got 'e"),
    ("config", configs()[0].replace(b'"max"', b'{"%s": 1}' % (b"e" * 5000)), "pooling must be 'max' or 'guided', got"),
    (
        "run",
        b'{"%s": "%s"}' % (b"a" * 5000, b"e" * 5000),
        r"to resume, got a{1000} \.\.\.;",
    ),
    ("row", b"\1" + array(ROW["meta"].replace("fade", "e" * 5000)), "must be a finished row, got upsampler 'e"),
    ("set", b"size={[]}", "--set size must be of type int"),
    ("set", b"size=" + b"-" * 100_000 + b"1", "--set size must be of type int"),
    ("row", b"\1" + array("[]"), "must be a finished row"),
    ("row", b"\2" + array(np.ones((2, 2))), "must be a finished row, got arrays of other shapes"),
    ("row", b"\2" + array(["a"]), "must be a finished row, got arrays that are no numbers"),
    (
        "row",
        b"\1" + array(ROW["meta"].replace('"seed": 0', '"seed": 1')),
        "row, got upsampler 'fade', seed 1;",
    ),
    ("row", b"\1" + array(ROW["meta"].replace("1.0", '"x"')), "must be a finished row, got 'x' as seconds"),
    ("snapshots", b"\1" + array(np.ones(3)), r"step10\.npz must hold feature\.N and gradient\.N, pictures of numbers"),
]
"""What the fuzzer, or the search for such, has found once."""


@pytest.mark.parametrize(("name", "content", "message"), FOUND, ids=[f"{x[0]}-{i}" for i, x in enumerate(FOUND)])
def test_found_once(name, content, message, tmp_path):
    assert not attempt(name, content, tmp_path / "a")
    path = tmp_path / "b" / TARGETS[name].file
    path.parent.mkdir(parents=True)
    TARGETS[name].write(path, content)
    with pytest.raises(ValueError, match=message):
        TARGETS[name].read(path)


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
    words = ["all", f"--runs={RUNS}", "--seconds=600", f"--out={tmp_path / 'out'}", f"--corpus={tmp_path / 'corpus'}"]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    executed = int(done.stderr.split("stat::number_of_executed_units:")[1].split()[0])
    assert executed >= RUNS
    assert not any((tmp_path / "out").iterdir())
