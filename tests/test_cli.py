import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

import fadeup
from fadeup.cli import main
from fadeup.cli.compare import _plan
from fadeup.cli.options import chosen_recipe
from fadeup.recipes import RECIPES

TINY = ["compare", "reconstruction", "--train-images", "40", "--test-images", "12", "--epochs", "1"]


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        self.links += [attributes[key] for key in ("src", "href") if key in attributes]


def test_compare_end_to_end(tmp_path, capsys):
    command = [*TINY, "--upsamplers", "bilinear", "carafe", "b1", "b3", "fade", "--out", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    for name in ("bilinear", "carafe", "decoder-only", "encoder-only", "fade", "PSNR", "Order by PSNR dB, best first:"):
        assert name in out
    run = tmp_path / "reconstruction"
    result = json.loads((run / "results.json").read_text())
    assert {line["upsampler"] for line in result["table"]} == {"bilinear", "carafe", "b1", "b3", "fade"}
    assert len(result["rows"]) == 10
    order = re.search(r"best first:(.*?)\.\sThe\s", out, re.S).group(1)
    ranked = sorted(result["table"], key=lambda line: -line["scores"]["psnr"][0])
    assert re.findall(r"([a-z0-9]+)\s+[\d.]+", order) == [line["upsampler"] for line in ranked]

    page = Page()
    page.feed((run / "report.html").read_text())
    assert len(page.images) == 2 + 6
    assert all(image["alt"] for image in page.images)
    assert all(link.startswith("data:") for link in page.links)  # one file, nothing fetched

    assert main(command) == 2  # again without --resume
    assert "must be new, got a run; use --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert "taken from the run folder" in " ".join(capsys.readouterr().out.split())


def test_baseline_is_added(tmp_path, capsys):
    assert main([*TINY, "--upsamplers", "fade", "--baseline", "nearest", "--seeds", "4", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "reconstruction" / "results.json").read_text())
    assert result["baseline"] == "nearest"
    assert [row["upsampler"] for row in result["rows"]] == ["nearest", "fade"]


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fadeup.compare.run_row", interrupt)
    assert main([*TINY, "--out", str(tmp_path)]) == 130
    assert "finished rows are kept in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upsamplers", "bilinear", "fad"], "upsampler must be one of"),
        (["--upsamplers", "bilinear", "bilinear"], "upsamplers must be different from each other"),
        (["--set", "size"], "--set must be FIELD=VALUE with one of batch_size, "),
        (["--set", "iterations=3"], "--set must be FIELD=VALUE with one of batch_size, "),
        (["--set", "size=x"], "--set size must be of type int, as 32 is, got 'x'"),
        (["--protocol", "long"], "protocol must be 'quick' or 'paper', got 'long'"),
        (["--source", "nowhere"], "train-images-idx3-ubyte.gz must be in nowhere"),
        (["--seeds", "0", "0"], "seeds must be different"),
        (["--name", "x", "--out", "/proc/none"], "must be a folder that can be written"),
        (["--name", "../x"], "--name must be a name within runs, got '../x'; --out is the folder"),
        (["--device", "warp"], "--device must be one that torch can use here, got 'warp': "),
    ],
)
def test_bad_arguments_of_compare(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fadeup compare: ")
    assert not list(tmp_path.glob("runs/*/rows/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detection"], "task must be one of reconstruction, weizmann, "),
        (["landcover", "segmentation"], "tasks must be different from each other, got landcover, segmentation"),
        (["--epochs", "3"], "--epochs must be given with one task, got 3 with reconstruction, landcover; name one"),
        (["--train-images", "3"], "--train-images must be given with one task, got 3 with"),
        (["--source", "full"], "--source must be given with one task, got 'full' with"),
        (["--set", "ema=0.9"], "--set must be given with one task, got ['ema=0.9'] with"),
        (["camvid", "--source", "nowhere"], "nowhere/train must be a folder of pictures, got no such folder"),
        (["landcover", "--set", "weights=nothing.pth"], "weights must be a file that exists, got 'nothing.pth'"),
        (["landcover", "--set", "network=unet"], "network must be 'segformer' or 'segnet', got 'unet'"),
    ],
)
def test_bad_tasks_of_compare(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compare_is_not_for_several_processes(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["compare"]) == 2
    expected = "process 1: fadeup compare: fadeup compare must be one process, got 2; use fadeup train with torchrun"
    assert capsys.readouterr().err.strip() == expected


def test_compare_covers_both_sides(tmp_path, capsys, monkeypatch):
    kinds = {
        "reconstruction": replace(RECIPES["reconstruction"](), train_images=20, test_images=12, epochs=1),
        "landcover": replace(
            RECIPES["landcover"](), weights=None, channels=8, crop=32, iterations=2, train_images=8, test_images=2
        ),
    }
    for task, recipe in kinds.items():
        monkeypatch.setattr(RECIPES[task], "protocol", classmethod(lambda kind, name, recipe=recipe: recipe))
    monkeypatch.setattr("fadeup.report.write_report", lambda path, *rest: path.write_text(""))  # seconds each
    command = ["compare", "--upsamplers", "bilinear", "fade", "--seeds", "3", "--out", str(tmp_path), "--name", "both"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+), (\w+), seed 3: ", out, re.M) == [
        (task, name) for task in ("reconstruction", "landcover") for name in ("bilinear", "fade")
    ]
    assert re.findall(r"^Report: (.*)$", out, re.M) == [str(tmp_path / "both" / task / "report.html") for task in kinds]
    for task in kinds:
        result = json.loads((tmp_path / "both" / task / "results.json").read_text())
        assert (result["task"], result["baseline"]) == (task, "bilinear")
        assert [row["upsampler"] for row in result["rows"]] == ["bilinear", "fade"]
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out.count("taken from the run folder") == 4

    one = ["compare", "segmentation", "--upsamplers", "bilinear", "--seeds", "3", "--out", str(tmp_path)]
    assert main(one) == 0
    assert (tmp_path / "landcover" / "report.html").exists()  # another name of it
    assert main([*command[:-1], "landcover"]) == 2
    assert "landcover must be a run of several tasks, got one of a single task; choose" in capsys.readouterr().err


def test_default_baseline_is_the_task_s_own(tmp_path):
    arguments = argparse.Namespace(
        upsamplers=["fade"], baseline=None, seeds=[0], protocol="quick", set=["weights=None"], source=str(tmp_path),
        epochs=None, train_images=None, test_images=None,
    )  # fmt: skip
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(328):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{number}.jpg")
        Image.new("L", (8, 8)).save(tmp_path / "masks" / f"{number}.png")
    _, _, upsamplers, baseline = _plan("weizmann", arguments)
    assert (upsamplers, baseline) == (["nearest", "fade"], "nearest")


def test_epochs_take_the_place_of_iterations():
    arguments = argparse.Namespace(
        epochs=3, train_images=None, test_images=None, source=None, protocol="quick", set=["crop=64"]
    )
    recipe = chosen_recipe("landcover", arguments)
    assert (recipe.epochs, recipe.iterations, recipe.crop) == (3, 0, 64)
    assert recipe.steps(recipe.data()) == 3 * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fad"], "operator must be reassemble, fade, "),
        (["fade", "--peers", "numba"], "peers must be one of 'native', 'unfold', "),
        (["fade", "--dtype", "int8"], "dtype must be one of 'float32', 'bfloat16', 'float16', got 'int8'"),
        (["--layout", "nhwc"], "layout must be one of 'channels_last', 'contiguous', got 'nhwc'"),
        (["--pass", "up"], "pass must be one of 'forward', 'forward+backward', 'backward', got 'up'"),
        (["a2u", "--scale", "4"], "scale must be 2 for A2U, got 4"),
        (["--seconds", "0"], "--seconds must be above 0, got 0.0"),
        (["--wait", "-1"], "--wait must be 0 or more, got -1.0"),
        (["--repeat", "2"], "--repeat must be given with --targets, got 2 alone"),
        (["--into", "page.md"], "--into must be given with --tables, got page.md alone"),
        (["--tables", "a.json", "--curves"], "--tables must be given alone or with --into, got curves too"),
        (["--figure", "a.png"], "--figure must be given with --curves, which it shows, got a.png alone"),
        (["--curves", "--figure", "a.pdf"], "--figure must be a .png or .svg file, got 'a.pdf'"),
        (["--json", "nowhere/a.json"], "--json must be in a folder that exists, got nowhere/a.json"),
    ],
)
def test_bad_arguments_of_bench(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--force", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fadeup bench: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["compare", "--epochs", "0"], ["frobnicate"], [], ["compare", "--seeds", "x"], ["bench", "--size", "0"]],
)
def test_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fadeup {fadeup.__version__}\n"


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("compare", "rich"),
        ("compare", "jinja2"),
        ("cost", "rich"),
        ("bench", "rich"),
        ("train landcover", "tensorboard"),
        ("eval model.safetensors", "rich"),
        ("predict segment . --model model.safetensors", "torchvision"),
    ],
)
def test_command_without_its_extra_says_which(command, module, tmp_path):
    words = command.split()
    code = f"import sys; sys.modules[{module!r}] = None; from fadeup.cli import main; sys.exit(main({words}))"
    command = words[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())  # before anything is begun
    assert done.stderr == (
        f"fadeup {command} needs {module}, which is not installed: pip install 'fadeup[experiments]'\n"
    )


def test_import_loads_torch_and_nothing_heavier():
    code = """
import sys, torch
before = set(sys.modules)
from fadeup import *
new = {name.split('.')[0] for name in set(sys.modules) - before}
print(sorted(new - sys.stdlib_module_names - {'fadeup'}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_core_works_with_torch_and_numpy_alone():
    extras = ["rich", "matplotlib", "jinja2", "torchvision", "safetensors", "PIL", "onnx"]
    code = f"""
import sys
for name in {extras}: sys.modules[name] = None
import torch, fadeup, fadeup.models
from fadeup.cli import main
for name in fadeup.UPSAMPLERS:
    up = fadeup.build_upsampler(name, 8).eval()
    up(torch.rand(1, 8, 4, 4), torch.rand(1, 8, 8, 8))
sys.exit(main(['cost', '--json', '-']))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rows"]


def test_python_m_fadeup():
    done = subprocess.run([sys.executable, "-m", "fadeup", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fadeup {fadeup.__version__}\n"
