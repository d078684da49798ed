import numpy as np
import pytest
from PIL import Image

from fadeup.data.composition1k import Composites, composition1k
from fadeup.data.matting import Foreground, MattingImages, write_test_set

RNG = np.random.default_rng(0)
PARTS = ("Adobe-licensed images", "Other")


def save(path, *size):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(array).save(path)
    return array


def lines(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n", encoding="utf-8")


@pytest.fixture
def training(tmp_path):
    for part, names in zip(PARTS, (("b", "a"), ("c",)), strict=True):
        for name in names:
            save(tmp_path / "Training_set" / part / "fg" / f"{name}.jpg", 12, 9, 3)
            save(tmp_path / "Training_set" / part / "alpha" / f"{name}.png", 12, 9)
    for n in (3, 1, 2):
        save(tmp_path / "train2014" / f"COCO_{n}.jpg", 8, 8, 3)
    return tmp_path


@pytest.fixture
def testing(tmp_path):
    test = tmp_path / "Test_set"
    arrays = {}
    for name, size in (("y", (12, 9)), ("x", (5, 16))):
        arrays[name] = save(test / PARTS[0] / "fg" / f"{name}.png", *size, 3)
        arrays[name, "alpha"] = save(test / PARTS[0] / "alpha" / f"{name}.png", *size)
        for n in range(20):
            Image.new("L", size[::-1], 128).save(_made(test / PARTS[0] / "trimaps" / f"{name}_{n}.png"))
    lines(test / "test_fg_names.txt", ["y.png", "x.png"])
    backgrounds = [f"2008_{n % 3}.png" for n in range(40)]
    lines(test / "test_bg_names.txt", backgrounds)
    for n, size in enumerate(((20, 20), (6, 9), (4, 4))):
        arrays[n] = save(tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"2008_{n}.png", *size, 3)
    return tmp_path, arrays


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_training_set_in_both_parts(training):
    foregrounds, backgrounds = composition1k("train", training, strict=False)
    assert [(item.name, item.color.parent.parent.name) for item in foregrounds] == [
        ("a", PARTS[0]),
        ("b", PARTS[0]),
        ("c", PARTS[1]),
    ]
    assert all(isinstance(item, Foreground) and item.alpha is not None for item in foregrounds)
    assert [path.name for path in backgrounds] == ["COCO_1.jpg", "COCO_2.jpg", "COCO_3.jpg"]


def test_training_set_follows_its_list(training):
    lines(training / "Training_set" / "training_fg_names.txt", ["c.jpg", "a.jpg"])
    foregrounds, _ = composition1k("train", training, strict=False)
    assert [item.name for item in foregrounds] == ["c", "a"]
    lines(training / "Training_set" / "training_fg_names.txt", ["c.jpg", "z.jpg"])
    with pytest.raises(ValueError, match=r"training_fg_names\.txt must list foregrounds that are there, got z; Comp"):
        composition1k("train", training, strict=False)


def test_backgrounds_of_another_folder(training, tmp_path):
    save(tmp_path / "mine" / "only.png", 8, 8, 3)
    _, backgrounds = composition1k("train", training, backgrounds=tmp_path / "mine", strict=False)
    assert [path.name for path in backgrounds] == ["only.png"]


def test_training_set_of_another_count(training):
    with pytest.raises(ValueError, match=r"Composition-1K's train split must have 431 pictures, got 3; pass strict"):
        composition1k("train", training)


@pytest.mark.parametrize("part", ["Training_set", "train2014"])
def test_missing_training_set_says_how_to_obtain_it(training, part):
    (training / part).rename(training / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"{part} must be .*; Composition-1K is .* on request: put Training_"):
        composition1k("train", training, strict=False)


def test_training_set_without_its_parts(training):
    for part in PARTS:
        (training / "Training_set" / part).rename(training / part)
    (training / "Training_set" / "x").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Training_set must hold Adobe-licensed images/fg and .* got neither"):
        composition1k("train", training, strict=False)


def test_composites_in_the_order_of_the_lists(testing):
    root, arrays = testing
    data = composition1k("test", root, strict=False)
    assert isinstance(data, Composites)
    assert data.names == [f"{name}_{n}" for name in "yx" for n in range(20)]
    image, alpha, trimap = data[21]  # x on the second of its backgrounds, 21 % 3 = 0: large enough to be cut alone
    assert (alpha.numpy() == arrays["x", "alpha"]).all()
    weight = arrays["x", "alpha"][..., None] / 255
    exact = weight * arrays["x"] + (1 - weight) * arrays[0][:5, :16]
    assert (image.permute(1, 2, 0).numpy() == exact.astype(np.uint8)).all()
    assert trimap.unique().tolist() == [128]
    assert trimap.shape == alpha.shape == (5, 16)


def test_composites_on_smaller_backgrounds_enlarge_them_as_pillow_does(testing):
    root, arrays = testing
    data = composition1k("test", root, strict=False)
    behind = Image.fromarray(arrays[1]).resize((18, 12), Image.Resampling.BICUBIC)  # 6 x 9 to cover 12 x 9
    image, alpha, _ = data[1]
    weight = arrays["y", "alpha"][..., None] / 255
    exact = weight * arrays["y"] + (1 - weight) * np.asarray(behind)[:, :9]
    assert (image.permute(1, 2, 0).numpy() == exact.astype(np.uint8)).all()
    assert alpha.shape == (12, 9)
    assert data[2][0].shape == (3, 12, 9)


def test_finished_composites_are_taken_where_they_are(testing):
    root, _ = testing
    made = composition1k("test", root, strict=False)
    write_test_set(made, root / "made")
    for path in (root / "made").iterdir():
        path.rename(root / "Test_set" / path.name)
    data = composition1k("test", root, strict=False)
    assert isinstance(data, MattingImages)
    assert data.names == sorted(made.names)
    for name, sample in zip(data.names, data, strict=True):
        assert all((one == other).all() for one, other in zip(sample, made[made.names.index(name)], strict=True))
    with pytest.raises(ValueError, match=r"Composition-1K's test split must have 1000 pictures, got 40; pass strict"):
        composition1k("test", root)


def test_test_foregrounds_of_another_count(testing):
    with pytest.raises(
        ValueError, match=r"Composition-1K's test foregrounds must have 50 pictures, got 2; pass strict"
    ):
        composition1k("test", testing[0])


@pytest.mark.parametrize("name", ["test_fg_names.txt", "test_bg_names.txt"])
def test_missing_lists(testing, name):
    (testing[0] / "Test_set" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} must be a list of names, got no such file; Composition-1K"):
        composition1k("test", testing[0], strict=False)


def test_list_of_another_length(testing):
    lines(testing[0] / "Test_set" / "test_bg_names.txt", ["2008_0.png"] * 39)
    message = r"test_bg_names\.txt must have 20 backgrounds for each of 2 foregrounds, got 39 lines"
    with pytest.raises(ValueError, match=message):
        composition1k("test", testing[0], strict=False)


def test_missing_trimap_and_background(testing):
    root, _ = testing
    (root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"JPEGImages must hold 2008_1\.png .*, got 13 missing; Composition-1K"):
        composition1k("test", root, strict=False)
    lines(root / "Test_set" / "test_bg_names.txt", ["2008_0.png"] * 40)
    (root / "Test_set" / PARTS[0] / "trimaps" / "x_7.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"Test_set must hold a trimap x_7, got none; Composition-1K is"):
        composition1k("test", root, strict=False)


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match=r"split must be 'train' or 'test', got 'val'"):
        composition1k("val", tmp_path)


def test_trimap_of_another_size(testing):
    root, _ = testing
    Image.new("L", (12, 9), 128).save(root / "Test_set" / PARTS[0] / "trimaps" / "y_0.png")
    data = composition1k("test", root, strict=False)
    with pytest.raises(ValueError, match=r"y_0\.png must be 12 x 9 like its picture, got 9 x 12"):
        data[0]


def test_default_place_and_backgrounds_that_are_not_there(training, monkeypatch):
    training.rename(training.parent / "composition1k")
    monkeypatch.setenv("FADEUP_DATA", str(training.parent))
    assert len(composition1k("train", strict=False)[0]) == 3
    with pytest.raises(FileNotFoundError, match=r"none must be a folder of pictures, got no such folder"):
        composition1k("train", backgrounds=training / "none", strict=False)
