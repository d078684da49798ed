"""What the page computes, and how its worker and its command behave; the page itself is in test_demo_browser.py."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fadeup.checkpoint import read_about
from fadeup.cli import main
from fadeup.demo import EDGE, INSIDE
from fadeup.demo.studio import Studio, signed, trimap_from_strokes
from fadeup.demo.worker import Worker
from fadeup.predict import save_trained
from fadeup.predict.trained import ASSETS
from fadeup.recipes import ColourReconstruction, Reconstruction


@pytest.fixture(scope="module")
def studio():
    return Studio(max_pixels=60_000)


@pytest.fixture(scope="module")
def photos(studio):
    return studio.photographs()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_networks_that_ship_are_offered_by_task(studio):
    names = ["a2u", "bilinear", "carafe", "fade"]
    assert studio.choices() == {"segment": names, "matte": names, "reconstruct": names}


@pytest.mark.parametrize("name", ["bilinear", "fade"])
def test_a_satellite_picture_is_segmented_and_scored(studio, photos, name):
    found = studio.predict("segment", name, photos["Caspian Sea, from space"])
    assert opened(found.picture).size == (244, 244)  # of 60,000 pixels at most
    assert found.result.shape == (244, 244)
    assert sum(share for _, _, share in found.classes) == pytest.approx(1)
    assert found.seconds > 0
    assert found.parameters == {"bilinear": 3_007_750, "fade": 3_144_226}[name]
    assert found.score == ""  # made smaller, so that the truth has another size


def test_the_truth_is_known_of_pictures_that_ship(photos):
    found = Studio().predict("segment", "fade", photos["Caspian Sea, from space"])
    share = float(found.score.removesuffix(" % right"))
    assert 40 < share < 90


def test_a_photograph_is_matted_by_its_own_trimap(studio, photos):
    found = studio.predict("matte", "bilinear", photos["dandelion"])
    assert found.result.shape == (209, 286)
    assert {0, 255} <= set(np.unique(found.result))
    assert not found.classes
    assert (np.array(opened(found.picture)) == found.result).all()


def test_a_photograph_is_given_back_and_scored(studio, photos):
    scores = {}
    for name in ("bilinear", "fade"):
        found = studio.predict("reconstruct", name, photos["Korea, from space"])
        assert found.result.shape == (244, 244, 3)
        scores[name] = float(found.score.split()[1])
    assert scores["fade"] > scores["bilinear"] > 15


def test_differences_are_in_colours(studio, photos):
    photo = photos["Korea, from space"]
    labels = np.zeros((244, 244), np.uint8)
    other = labels.copy()
    other[:, 100:] = 1

    def difference(*arguments) -> np.ndarray:
        return np.array(opened(studio.difference(*arguments, photo)))

    picture = difference("segment", labels, other)
    assert (picture[100, 100] == (0, 114, 178)).all()  # a boundary of the right one alone
    assert (picture[100, 20] == 255).all()
    alpha = difference("matte", labels, 255 * other)
    assert alpha[0, 0].min() > 240
    assert alpha[0, 200][2] > alpha[0, 200][0]  # purple where the right one is larger
    true = np.array(opened(studio.backdrop(photo)))
    error = difference("reconstruct", np.zeros_like(true), true)
    assert error[0, 0][0] > error[0, 0][2]  # orange where the left one is further off


def test_gates_of_both_networks_stand_beneath_each_other(studio, photos):
    photo = photos["Korea, from space"]
    one = opened(studio.gates("segment", ("bilinear", "fade"), photo))
    two = opened(studio.gates("reconstruct", ("fade",), photo))
    assert one.format == two.format == "PNG"
    assert studio.gates("segment", ("bilinear", "carafe"), photo) is None
    both = opened(studio.gates("matte", ("fade", "fade"), photos["dandelion"]))
    assert both.height == 2 * opened(studio.gates("matte", ("fade",), photos["dandelion"])).height


def test_kernels_of_a_stage_are_drawn(studio, photos):
    photo = photos["Korea, from space"]
    pictures = {
        stage: studio.kernels("segment", "fade", photo, None, stage, (0.5, 0.5)) for stage in ("finest", "coarsest")
    }
    assert pictures["finest"] != pictures["coarsest"]
    assert studio.kernels("segment", "bilinear", photo, None, "finest", (0.5, 0.5)) is None
    assert studio.kernels("reconstruct", "bilinear", photo, None, "finest", (0.5, 0.5)) is None


def test_files_are_what_the_command_line_writes(studio, photos):
    found = studio.predict("segment", "carafe", photos["Korea, from space"])
    labels = opened(studio.file("segment", "carafe", found.result))
    assert labels.mode == "P"
    assert (np.array(labels) == found.result).all()
    assert opened(studio.file("matte", "fade", found.result)).mode == "L"


def test_large_photographs_are_made_smaller(studio, tmp_path):
    Image.new("RGB", (800, 200)).save(tmp_path / "wide.png")
    assert studio.size(tmp_path / "wide.png") == ((200, 800), (122, 489))


def test_a_trimap_is_needed(studio, photos, tmp_path):
    with pytest.raises(ValueError, match="trimap must be drawn or uploaded for matting, got none"):
        studio.predict("matte", "fade", photos["Korea, from space"])
    Image.new("L", (5, 7)).save(tmp_path / "trimap.png")
    with pytest.raises(ValueError, match=r"trimap\.png must be 440 x 600 like its photo, got 7 x 5"):
        studio.predict("matte", "fade", photos["dandelion"], tmp_path / "trimap.png")


def test_an_unknown_network_is_refused(studio, photos):
    with pytest.raises(ValueError, match="upsampler must be one of a2u, bilinear, carafe, fade, got /etc/passwd"):
        studio.predict("segment", "/etc/passwd", photos["dandelion"])


def strokes(inside=None, edge=None) -> np.ndarray:
    layer = np.zeros((40, 60, 4), np.uint8)
    for area, colour in ((edge, EDGE), (inside, INSIDE)):
        if area is not None:
            layer[area] = (*colour, 255)
    return layer


def test_strokes_become_a_trimap():
    edge, inside = np.s_[10:30, 10:50], np.s_[15:25, 20:40]
    trimap = trimap_from_strokes(strokes(inside, edge), (80, 120))
    assert trimap.shape == (80, 120)
    assert trimap[0, 0] == 0
    assert trimap[21, 25] == 128
    assert trimap[40, 60] == 255


def test_without_an_edge_a_band_is_unknown():
    trimap = trimap_from_strokes(strokes(np.s_[10:30, 10:50]), (40, 60))
    assert (trimap[20, [2, 10, 13, 30]] == (0, 128, 128, 255)).all()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (strokes(), "trimap must be drawn or uploaded for matting, got none"),
        (strokes(np.s_[:, :]), "mask must have foreground .* and background, got foreground alone"),
    ],
)
def test_strokes_of_nothing_or_everything_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        trimap_from_strokes(layer, (40, 60))


def test_signed_values_are_white_at_zero():
    picture = signed(np.array([[-10.0, 0, 10]]))
    assert picture[0, 1].min() > 240
    assert picture[0, 0][2] > picture[0, 0][0]
    assert picture[0, 2][0] > picture[0, 2][2]


def trained(folder: Path, recipe: Reconstruction) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    save_trained(
        folder / "model.safetensors", recipe, recipe.model("nearest"), upsampler="nearest", seed=0, scores={"psnr": 1.0}
    )
    return folder


def test_networks_of_ones_own_are_offered(tmp_path, photos):
    run = trained(tmp_path / "mine", ColourReconstruction())
    grey = trained(tmp_path / "grey", Reconstruction())
    studio = Studio([str(run), str(grey)], max_pixels=20_000)
    assert studio.choices()["reconstruct"][-2:] == ["mine", "grey"]
    for name in ("mine", "grey"):
        assert studio.predict("reconstruct", name, photos["dandelion"]).result.shape == (121, 165, 3)
    trained(tmp_path / "more", ColourReconstruction())
    (tmp_path / "more").rename(tmp_path / "fade")
    with pytest.raises(ValueError, match="models must have names of their own, got fade twice; rename the folder"):
        Studio([str(tmp_path / "fade")])


def test_a_photograph_that_takes_too_long_ends_the_worker_and_no_more(photos, tmp_path):
    worker = Worker([], 1_000_000, 0.01)
    try:
        worker.seconds = 60
        assert "segment" in worker.call("choices")
        worker.seconds = 0.001
        with pytest.raises(ValueError, match=r"A photograph must be done within 0\.001 s, got longer; take a smaller"):
            worker.call("predict", "segment", "fade", photos["dandelion"])
        worker.seconds = 60
        with pytest.raises(ValueError, match="upsampler must be one of"):
            worker.call("predict", "segment", "none", photos["dandelion"])
        with pytest.raises(RuntimeError, match="AttributeError"):
            worker.call("nothing")
        worker._process.kill()
        with pytest.raises(RuntimeError, match="The computing process ended"):
            worker.call("choices")
        assert "matte" in worker.call("choices")
    finally:
        worker.close()


def test_the_command_refuses_a_taken_port(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    assert f"--host and --port must be free to be listened on, got 127.0.0.1:{port}" in capsys.readouterr().err


def test_the_command_refuses_a_model_that_is_none(capsys, tmp_path, monkeypatch):
    for name in ("GRADIO_TEMP_DIR", "MPLCONFIGDIR"):  # the command sets them
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["demo", "--port", str(port), "--models", str(tmp_path / "nothing")]) == 2
    assert "model must be a run folder" in capsys.readouterr().err


def test_old_downloads_are_swept(tmp_path):
    page_module = pytest.importorskip("fadeup.demo.page", reason="needs gradio: pip install 'fadeup[demo]'")
    worker = SimpleNamespace(call=lambda method: {"choices": {"segment": ["fade"]}, "photographs": {}}[method])
    page = page_module.Page(worker, tmp_path)
    old, new = (Path(page._written(Path("x.jpg"), ending, b"1")).parent for ending in ("old", "new"))
    past = time.time() - page_module.KEPT - 1
    os.utime(old, (past, past))
    page._tidy()
    assert not old.exists()
    assert new.exists()


def test_assets_fit():
    """16 MB in all."""
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 16_000_000
    assert read_about(ASSETS / "models/reconstruction-fade.safetensors")["task"] == "reconstruction-colour"


def test_the_page_starts_without_torch():
    """Its process computes nothing; importing torch would cost it seconds, and receiving a result did once."""
    code = (
        "import pickle, sys; import fadeup.cli; from fadeup.demo import serve, worker; "
        "pickle.loads(pickle.dumps(worker.Prediction(b'', None, 0, None, 0, '', ()))); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
