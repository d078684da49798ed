"""`fadeup predict segment`, with networks of `fadeup train` and of Hugging Face."""

import json
import re
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file

from fadeup.checkpoint import save_weights
from fadeup.cli import main
from fadeup.data.labelled import distinct_colours, read_photo
from fadeup.data.landcover import ASSETS, CLASSES, PALETTE
from fadeup.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TestTransform
from fadeup.predict import load_segmenter, segment_photo, trained
from fadeup.recipes import LandCover, Weizmann

SIZE = (60, 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Untrained weights as `fadeup train` would write them."""
    torch.manual_seed(0)
    recipe = LandCover(channels=8, weights=None)
    return written(tmp_path_factory.mktemp("run") / "model.safetensors", recipe, CLASSES, PALETTE)


def written(path, recipe, classes, palette):
    about = {
        "task": recipe.task, "recipe": asdict(recipe),
        "upsampler": "fade", "classes": list(classes), "palette": palette.tolist(), "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    save_weights(path, recipe.build("fade", len(classes), None), about)
    return path


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A small SegFormer as transformers saves it."""
    torch.manual_seed(0)
    names = {0: "wall", 1: "building; edifice", 2: "sky", 3: "tree", 4: "road", 5: "grass"}
    config = transformers.SegformerConfig(
        depths=(1, 1, 1, 1), hidden_sizes=(8, 8, 16, 16), num_attention_heads=(1, 1, 2, 2), decoder_hidden_size=8,
        num_labels=6, id2label=names,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("hub") / "segformer"
    transformers.SegformerForSemanticSegmentation(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of photographs of many kinds, two of them broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(sorted(ASSETS.glob("*.jpg"))[0]) as tile:
        photo = tile.convert("RGB").resize(SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo.save(folder / "turned.jpg", exif=exif)
    photo.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(folder / "deep [16].png")
    photo.resize((1, 1)).save(folder / "dot.png")
    photo.save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:900])
    (folder / "text.jpg").write_text("no picture")
    return folder


def sizes(folder):
    found = {}
    for path in folder.glob("[!.]*"):
        with Image.open(path) as image:
            found[path.name] = (image.mode, image.size)
    return found


def test_a_folder_of_photographs(model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", "segment", str(photos), "--model", str(model), "--out", str(out)]
    assert main(command) == 1  # two are broken
    expected = {}
    for name, size in (("turned", SIZE[::-1]), ("print", SIZE), ("deep [16]", SIZE), ("dot", (1, 1))):
        expected |= {f"{name}.label.png": ("P", size), f"{name}.overlay.png": ("RGB", size)}
    assert sizes(out) == expected
    said = capsys.readouterr()
    assert re.findall(r"^failed: .*/(\w+\.\w+) must be a whole picture", said.err, re.M) == ["cut.png", "text.jpg"]
    told = re.findall(r"^\S.*?([^/]+): (.+?) ([\d.]+) %", said.out, re.M)
    assert [name for name, _, _ in told] == ["deep [16].png", "dot.png", "print.jpg", "turned.jpg"]
    assert told[1] == ("dot.png", told[1][1], "100.0")
    assert {name for _, name, _ in told} <= CLASSES.keys()
    assert f"4 of 6 photographs labelled, in {out}" in said.out

    assert main(command) == 2
    assert (
        "must not hold these photos' results, got deep [16].label.png and 7 more; set over" in capsys.readouterr().err
    )
    assert main([*command, "--overwrite"]) == 1


@pytest.mark.parametrize("resize", [(), ("--resize", "96")])
def test_labels_are_those_of_the_network(model, photos, tmp_path, resize):
    command = ["predict", "segment", str(photos / "print.jpg"), "--model", str(model.parent), "--opacity", "1"]
    assert main([*command, "--out", str(tmp_path / "out"), *resize]) == 0
    photo = read_photo(photos / "print.jpg")
    transform = TestTransform(96 if resize else None, mean=[0.5] * 3, std=[0.5] * 3)
    expected = segment_photo(load_segmenter(model).network, photo, transform.prepare)
    with Image.open(tmp_path / "out" / "print.label.png") as label:
        assert np.array_equal(np.asarray(label), expected.numpy())
        assert np.array_equal(np.asarray(label.convert("RGB")), PALETTE[expected.numpy()])


def test_default_folder(model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "segment", str(photos / "dot.png"), "--model", str(model)]) == 0
    assert sorted(path.name for path in (tmp_path / "predictions").glob("[!.]*")) == [
        "dot.label.png",
        "dot.overlay.png",
    ]


def test_segformer_of_hugging_face(hugging_face, photos, tmp_path, capsys):
    photo = photos / "print.jpg"
    command = ["predict", "segment", str(photo), "--model", str(hugging_face), "--out", str(tmp_path / "out")]
    assert main([*command, "--resize", "64"]) == 0
    pixels = TestTransform(64, mean=IMAGENET_MEAN, std=IMAGENET_STD).prepare(read_photo(photo))[None]
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(hugging_face).eval()
    with torch.no_grad():
        logits = F.interpolate(theirs(pixels).logits, SIZE[::-1], mode="bilinear")[0]
    with Image.open(tmp_path / "out" / "print.label.png") as image:
        label = torch.from_numpy(np.array(image)).long()
        assert image.getpalette()[:18] == distinct_colours(6).flatten().tolist()
    assert torch.allclose(logits.gather(0, label[None])[0], logits.amax(0), atol=1e-4)
    names = theirs.config.id2label
    largest = names[int(label.flatten().bincount().argmax())]
    assert f"print.jpg: {largest} " in capsys.readouterr().out


def test_segformer_of_hugging_face_is_scored(hugging_face, capsys, tmp_path):
    command = ["eval", str(hugging_face), "--test-images", "1"]
    assert main([*command, "--data", "landcover"]) == 0
    assert re.search(r"^mIoU % [\d.]+, boundary IoU % [\d.]+$", capsys.readouterr().out, re.M)
    assert main(command) == 2
    assert "--data must be given with a network of Hugging Face, got none for" in capsys.readouterr().err
    assert main([*command, "--data", "reconstruction"]) == 2
    assert "--data must be a segmentation data set for" in capsys.readouterr().err


def test_exact_sizes_of_the_recipe_are_kept(tmp_path):
    torch.manual_seed(0)
    recipe = Weizmann(network="segformer", backbone="tf_efficientnet_lite0", channels=8, weights=None, size=72)
    path = written(tmp_path / "model.safetensors", recipe, ("ground", "horse"), PALETTE[:2])
    segmenter = load_segmenter(path)
    photo = torch.randint(256, (3, 50, 90), dtype=torch.uint8)
    assert segmenter.transform(photo).shape == (3, 72, 72)  # no multiple of 32, as in training
    assert torch.equal(segmenter.transform(photo), recipe.prepare((photo, photo[0]))[0])  # what `fadeup eval` scores
    assert load_segmenter(path, resize=50).transform(photo).shape == (3, 64, 96)
    assert segmenter.recipe == recipe
    assert not segmenter.network.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jpg"], "photos must be files or folders, got none.jpg, which does not exist"),
        (["."], ". must hold photos"),
        (["PHOTO", "--model", "none"], "model must be a run folder, a .safetensors file or a SegFormer of Hugging"),
        (["PHOTO", "--model", "plain.safetensors"], "plain.safetensors must be weights that fadeup train wrote"),
        (["PHOTO", "--opacity", "2"], "opacity must be 0 to 1, got 2.0"),
        (["PHOTO", "--device", "warp"], "--device must be one that torch can use here"),
    ],
)
def test_bad_arguments_of_predict(arguments, message, model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.zeros(1)}, "plain.safetensors")
    words = [str(photos / "dot.png") if word == "PHOTO" else word for word in arguments]
    assert main(["predict", "segment", "--model", str(model), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fadeup predict: ")
    assert not (tmp_path / "predictions").exists()


def test_no_network_ships_yet(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trained, "ASSETS", tmp_path)
    assert main(["predict", "segment", str(photos / "dot.png")]) == 2
    assert "model must be given, got none; no trained network ships with this version" in capsys.readouterr().err


def test_the_shipped_network_is_the_default(model, photos, tmp_path, monkeypatch):
    entry = {"name": "landcover-fade", "task": "landcover", "file": "landcover-fade.safetensors"}
    (tmp_path / "models.json").write_text(json.dumps([entry]))
    shutil.copy(model, tmp_path / entry["file"])
    monkeypatch.setattr(trained, "ASSETS", tmp_path)
    assert main(["predict", "segment", str(photos / "dot.png"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "dot.label.png").is_file()


def test_reconstruction_does_not_segment(photos, tmp_path, capsys):
    command = ["train", "reconstruction", "--train-images", "8", "--test-images", "2", "--epochs", "1", "--name", "one"]
    assert main([*command, "--out", str(tmp_path), "--no-tensorboard"]) == 0
    assert main(["predict", "segment", str(photos), "--model", str(tmp_path / "one")]) == 2
    assert "one must be a segmentation network, got one of reconstruction" in capsys.readouterr().err
