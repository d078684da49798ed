"""`fadeup predict matte` from the command line to the files, with an untrained network."""

import json
import re
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from fadeup.checkpoint import save_weights
from fadeup.cli import main
from fadeup.cli.predict import MATTER
from fadeup.data.labelled import read_photo
from fadeup.data.landcover import ASSETS
from fadeup.data.matting import UNKNOWN
from fadeup.predict import load_matter, matte_photo, read_guide, trained
from fadeup.recipes import Cutouts, LandCover

SIZE = (70, 45)


def written(path, recipe, upsampler="fade"):
    torch.manual_seed(0)
    about = {"task": recipe.task, "recipe": asdict(recipe), "upsampler": upsampler}
    save_weights(path, recipe.build(upsampler, None), about | recipe.description())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Untrained weights as `fadeup train` would write them."""
    return written(tmp_path_factory.mktemp("run") / "model.safetensors", Cutouts(channels=8, weights=None))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Photographs, trimaps and masks, in the folder that the command is run in."""
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "trimaps", "masks"):
        (tmp_path / folder).mkdir()
    with Image.open(sorted(ASSETS.glob("*.jpg"))[0]) as tile:
        photo = tile.convert("RGB").resize(SIZE)
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:35, 20:50] = 255
    trimap = mask.copy()
    trimap[10:35, 20:30] = UNKNOWN
    for name in ("a", "b"):
        photo.save(tmp_path / "photos" / f"{name}.jpg")
        Image.fromarray(trimap).save(tmp_path / "trimaps" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def predict(*words):
    return main(["predict", "matte", *map(str, words)])


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def test_a_photograph_and_its_trimap(model, place, capsys):
    assert predict("photos/a.jpg", "--trimap", "trimaps/a.png", "--model", model) == 0
    assert [path.name for path in (place / "predictions").glob("[!.]*")] == ["a.alpha.png"]
    photo, trimap = read_photo("photos/a.jpg"), read_guide("trimaps/a.png", SIZE[::-1])
    matter = load_matter(model.parent)
    expected = matte_photo(matter.network, photo, trimap, matter.mean, matter.std)
    alpha = read("predictions/a.alpha.png")
    assert np.array_equal(alpha, expected.numpy())
    said = capsys.readouterr().out
    covered, unknown = 100 * alpha.mean() / 255, 100 * 250 / alpha.size
    assert f"photos/a.jpg: foreground {covered:.1f} %, {unknown:.1f} % was unknown\n" in said
    assert "1 of 1 photographs matted, in predictions" in said


def test_a_folder_with_masks_tiles_cut_outs_and_a_background(model, place, capsys, monkeypatch):
    monkeypatch.setattr("fadeup.predict.matte.foreground_colors", lambda photo, alpha: photo.permute(1, 2, 0).numpy())
    options = ["--mask", "masks", "--width", "4", "--cutout", "--background", "#00ff00", "--tile", "256"]
    command = ["photos", "--model", model, *options, "--out", "out"]
    (place / "photos" / "cut.png").write_bytes((place / "photos" / "a.jpg").read_bytes()[:500])
    shutil.copy("masks/a.png", "masks/cut.png")
    assert predict(*command) == 1
    kinds = {"alpha": ("L", SIZE), "cutout": ("RGBA", SIZE), "composite": ("RGB", SIZE)}
    for name in ("a", "b"):
        for kind, expected in kinds.items():
            with Image.open(place / "out" / f"{name}.{kind}.png") as image:
                assert (image.mode, image.size) == expected
    assert len(list((place / "out").glob("[!.]*"))) == 6
    assert read("out/a.composite.png")[0, 0].tolist() == [0, 255, 0]
    assert (read("out/a.alpha.png") > 0).sum() < 33 * 38 + 1
    said = capsys.readouterr()
    assert re.findall(r"^failed: .*/(\w+\.\w+) must be a whole picture", said.err, re.M) == ["cut.png"]
    assert "2 of 3 photographs matted, in out" in said.out

    assert predict(*command) == 2
    assert "out must not hold these photos' results, got a.alpha.png and 5 more; set over" in capsys.readouterr().err
    assert predict(*command, "--overwrite") == 1


def test_resume_makes_what_is_missing_and_what_changed(model, place, capsys):
    command = ["photos", "--trimap", "trimaps", "--model", model, "--out", "out", "--resume"]
    assert predict(*command) == 0
    first = {path.name: path.stat().st_mtime_ns for path in (place / "out").glob("*.png")}
    told = capsys.readouterr().out
    assert predict(*command) == 0
    assert capsys.readouterr().out.replace(" (was there)", "") == told
    trimap = read("trimaps/b.png")
    trimap[:2] = 255
    Image.fromarray(trimap).save("trimaps/b.png")
    assert predict(*command) == 0
    then = {path.name: path.stat().st_mtime_ns for path in (place / "out").glob("*.png")}
    assert {name for name in first if first[name] != then[name]} == {"b.alpha.png"}
    assert predict("photos", "--trimap", "trimaps", "--model", model, "--out", "out", "--tile", "256", "--resume") == 2
    assert "to resume, got tile is 0 there, 256 asked; repeat them, overwrite, or choose" in capsys.readouterr().err


def test_earlier_results_are_no_photographs(model, place):
    command = ["photos", "--trimap", "trimaps", "--model", model, "--out", "photos"]
    assert predict(*command) == 0
    assert predict(*command, "--overwrite") == 0
    assert sorted(path.name for path in (place / "photos").glob("[!.]*")) == [
        "a.alpha.png",
        "a.jpg",
        "b.alpha.png",
        "b.jpg",
    ]


def test_the_shipped_network_is_the_default(model, place, capsys, monkeypatch):
    monkeypatch.setattr(trained, "ASSETS", place)
    command = ["photos/a.jpg", "--trimap", "trimaps"]
    assert predict(*command) == 2
    assert "model must be given, got none; no trained network ships with this version" in capsys.readouterr().err
    entry = {"name": MATTER, "task": "cutouts", "file": "some.safetensors"}
    (place / "models.json").write_text(json.dumps([entry]))
    shutil.copy(model, place / entry["file"])
    assert predict(*command) == 0
    assert predict(*command, "--model", "matting-b") == 2
    assert f"got 'matting-b', which does not exist; {MATTER} ship with this version" in capsys.readouterr().err


def test_networks_of_other_tasks_are_refused(place, capsys):
    recipe = LandCover(channels=8, weights=None)
    path = place / "land.safetensors"
    about = {"task": recipe.task, "recipe": asdict(recipe), "upsampler": "fade", "classes": ["a"], "palette": [[0] * 3]}
    save_weights(path, recipe.build("fade", 1, None), about)
    assert predict("photos", "--trimap", "trimaps", "--model", path) == 2
    assert "land.safetensors must be a matting network, got one of landcover" in capsys.readouterr().err
    assert predict("photos", "--trimap", "trimaps", "--model", "who/knows") == 2
    assert "model must be a matting network that fadeup train wrote, got another kind, 'who/knows'" in (
        capsys.readouterr().err
    )
    matting = written(place / "matting.safetensors", Cutouts(channels=8, weights=None))
    assert main(["predict", "segment", "photos", "--model", str(matting)]) == 2
    assert "matting.safetensors must be a segmentation network, got one of cutouts" in capsys.readouterr().err


def test_a2u_is_not_tiled(place, capsys):
    path = written(place / "model.safetensors", Cutouts(channels=8, weights=None), "a2u")
    assert predict("photos", "--trimap", "trimaps", "--model", path, "--tile", "256") == 2
    assert "tile must be 0 for a network with A2U" in capsys.readouterr().err
    assert predict("photos", "--trimap", "trimaps", "--model", path) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.jpg", "--trimap", "trimaps"], "photos must be files or folders, got none.jpg, which does not exist"),
        (["photos", "--trimap", "none"], "trimap must be a file or a folder, got none, which does not exist"),
        (["photos", "--trimap", "trimaps/a.png"], "trimap must be a folder for 2 photos, got the file trimaps/a.png"),
        (["photos", "--mask", "photos"], "photos must hold a mask for each photo, a with any suffix, got none"),
        (["photos", "--trimap", "trimaps", "--width", "4"], "--width must be left out without --mask, got 4"),
        (["photos", "--trimap", "trimaps", "--background", "#fff"], "background must be a picture or a colour such as"),
        (["photos", "--trimap", "trimaps", "--background", "sky"], "sky must be a picture, got no such file"),
        (["photos", "--trimap", "trimaps", "--tile", "100"], "tile must be 0 or a multiple of 32 from 256, got 100"),
        (["photos", "--trimap", "trimaps", "--device", "warp"], "--device must be one that torch can use here"),
    ],
)
def test_bad_arguments(words, message, model, place, capsys):
    assert predict(*words, "--model", model) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fadeup predict: ")
    assert not (place / "predictions").exists()


def test_trimap_or_mask(model, place, capsys):
    for words in ([], ["--trimap", "trimaps", "--mask", "masks"]):
        with pytest.raises(SystemExit, match="2"):
            predict("photos", "--model", model, *words)
    assert "one of the arguments --trimap --mask is required" in capsys.readouterr().err
