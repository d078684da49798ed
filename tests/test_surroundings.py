"""Where things are unlike on a developer's machine: no extras, no compiler, an ASCII terminal, no home, odd paths, -O.

Commands run in processes of their own, several to a process: to start one costs more than what it does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PHOTO = Path(__file__).parent.parent / "src/fadeup/assets/landcover/band03-row1.jpg"
EXTRAS = {  # what each extra brings, as imported
    "experiments": [
        *("accelerate", "huggingface_hub", "jinja2", "matplotlib", "cv2", "PIL", "pymatting", "rich", "safetensors"),
        *("tensorboard", "timm", "torchmetrics", "torchvision", "transformers"),
    ],
    "demo": ["gradio"],
    "export": ["onnx", "onnxruntime", "onnxscript"],
}
COMMANDS = {  # of each extra, with a part of what they say without it
    "experiments": {
        "compare": "which is not installed: pip install 'fadeup[experiments]'",
        "train landcover": "which is not installed: pip install 'fadeup[experiments]'",
        "eval landcover-fade": "pip install",
        "predict segment photo.jpg": "pip install",
        "explain photo.jpg": "pip install",
        "share landcover-fade there": "pip install",
        "demo --port 7871": "which is not installed: pip install 'fadeup[",
        "bench": "which is not installed: pip install 'fadeup[experiments]'",
        "cost": "which is not installed: pip install 'fadeup[experiments]'",
    },
    "demo": {"demo --port 7871": "fadeup demo needs gradio, which is not installed: pip install 'fadeup[demo]'"},
    "export": {"export fade fade.onnx": "pip install 'fadeup[export]'"},
}
WITHOUT = """
import contextlib, io, json, shlex, sys
for name in {modules}: sys.modules[name] = None
from fadeup.cli import main
told = {{}}
for command in {commands}:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(shlex.split(command))
        except SystemExit as problem:
            code = problem.code
    told[command] = code, errors.getvalue()
print(json.dumps(told))
"""


def python(code: str, folder: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    output, errors = (part.decode("utf-8", "replace") for part in (done.stdout, done.stderr))
    assert done.returncode == 0, errors
    return subprocess.CompletedProcess(command, done.returncode, output, errors)


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_command_says_which_extra_it_lacks(extra, tmp_path):
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    code = WITHOUT.format(modules=EXTRAS[extra], commands=list(COMMANDS[extra]))
    told = json.loads(python(code, tmp_path, dict(os.environ)).stdout.splitlines()[-1])
    for command, message in COMMANDS[extra].items():
        status, errors = told[command]
        assert (status, message in errors) == (2, True), f"{command}: {errors}"
        assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


HOSTILE = """
import sys, warnings
warnings.simplefilter("ignore")
import fadeup, torch
from fadeup.cli import main
if __debug__: sys.exit("asserts are on")
torch.manual_seed(0)
for name in fadeup.UPSAMPLERS:
    up, maps = fadeup.build_upsampler(name, 8), (torch.rand(2, 8, 5, 7), torch.rand(2, 8, 9, 13))
    outputs = []
    for impl in ("auto", "reference"):
        for part in up.modules():
            if hasattr(part, "impl"): part.impl = impl
        outputs.append(up(*maps))
    if not torch.allclose(*outputs, atol=1e-5): sys.exit(f"{name} differs from the reference")
tiny = "compare reconstruction --train-images 20 --test-images 12 --epochs 1 --seeds 0 --upsamplers bilinear fade"
codes = [
    main([*tiny.split(), "--out", "L\\u00e4ufe \\u4e2d"]),
    main(["predict", "segment", "Bilder \\u00fc", "--out", "aus \\u00f6"]),
    main(["doctor"]),
]
print("codes", codes)
"""


def test_everything_at_once(tmp_path):
    """No compiler, no home, nothing cached, an ASCII terminal, `-O`, blanks and letters of others in paths."""
    photos = tmp_path / "Bilder ü"
    photos.mkdir()
    shutil.copy(PHOTO, photos / "é 1.jpg")
    below_a_file = str(photos / "é 1.jpg" / "home")
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = kept | {"PATH": "/nowhere", "HOME": below_a_file, "LC_ALL": "C", "LANG": "C"}
    environment |= {"PYTHONOPTIMIZE": "1", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = python(HOSTILE, tmp_path, environment)
    assert "codes [0, 0, 0]" in done.stdout
    assert "\\xfc/\\xe9 1.jpg: " in done.stdout  # what the terminal lacks is spelled
    assert (tmp_path / "Läufe 中" / "reconstruction" / "report.html").is_file()
    label = np.asarray(Image.open(tmp_path / "aus ö" / "é 1.label.png"))
    from fadeup.predict import default_model, load_segmenter, segment_photos

    segmenter, plain = load_segmenter(default_model("landcover-fade")), tmp_path / "plain"
    options = {"transform": segmenter.transform, "palette": segmenter.palette, "classes": segmenter.classes}
    segment_photos(segmenter.network, [PHOTO], plain, **options)
    expected = np.asarray(Image.open(plain / f"{PHOTO.stem}.label.png"))
    assert (label == expected).mean() > 0.999  # the fused kernels add up in another order
