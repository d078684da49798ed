import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

# Its composites and Composite would be collected as tests, were they imported by name.
from fadeup.data import cutouts as module
from fadeup.data.cutouts import FOLDERS, LIST, OBTAIN, SHARE, cutouts
from fadeup.data.matting import read_foreground

LISTED = json.loads(LIST.read_text())
COUNTS = {"foregrounds": {"train": 187, "test": 40}, "backgrounds": {"train": 19, "test": 5}}
each_kind = pytest.mark.parametrize("kind", FOLDERS)
needs_packages = pytest.mark.skipif(
    not all((SHARE / folder / LISTED[kind][-1]["file"]).is_file() for kind, folder in FOLDERS.items()),
    reason=f"the pictures are not installed: {OBTAIN}",
)


@pytest.fixture
def share(tmp_path):
    for kind, folder in FOLDERS.items():
        for entry in LISTED[kind]:
            path = tmp_path / folder / entry["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return tmp_path


@each_kind
def test_the_list_names_each_file_once(kind):
    files = [entry["file"] for entry in LISTED[kind]]
    assert len(set(files)) == len(files)
    assert Counter(entry["split"] for entry in LISTED[kind]) == COUNTS[kind]
    assert not any(Path(file).is_absolute() or ".." in Path(file).parts for file in files)
    assert all(file.endswith(".png" if kind == "foregrounds" else ".jpg") for file in files)


def test_no_group_is_in_two_splits_and_each_test_group_has_one_picture():
    groups = {
        split: Counter(entry["group"] for entry in LISTED["foregrounds"] if entry["split"] == split)
        for split in ("train", "test")
    }
    assert not groups["train"].keys() & groups["test"].keys()
    assert len(groups["train"]) == 164
    assert set(groups["test"].values()) == {1}


@pytest.mark.parametrize(
    # Where a group is for test, one picture of it is left.
    ("start", "pictures"),
    [("frog", 2), ("gnu-", 1), ("lion-", 1), ("cep", 3), ("rabbit", 3), ("guitar", 4), ("fireman", 2), ("dumper", 2)],
)
def test_variants_of_a_thing_share_a_group(start, pictures):
    entries = [entry for entry in LISTED["foregrounds"] if Path(entry["file"]).stem.startswith(start)]
    assert len(entries) == pictures
    assert len({entry["group"] for entry in entries}) == 1


def test_the_demonstration_photograph_is_left_out():
    assert "seeding" not in LIST.read_text()


def test_training_has_cutouts_with_their_own_alpha_and_backgrounds(share):
    foregrounds, backgrounds = cutouts("train", share)
    assert (len(foregrounds), len(backgrounds)) == (187, 19)
    assert all(cut.alpha is None for cut in foregrounds)
    squirrel = next(cut for cut in foregrounds if cut.name == "squirrel")
    assert squirrel.color == share / "tuxpaint/stamps/animals/mammals/rodents/squirrel.png"
    assert share / "backgrounds/mate/nature/Wood.jpg" in backgrounds
    assert cutouts("train", str(share)) == (foregrounds, backgrounds)


def test_each_cutout_meets_each_background_in_the_test_list():
    entries = module.composites()
    assert len(entries) == 200
    assert [entry.seed for entry in entries] == list(range(200))
    assert len({entry.name for entry in entries}) == 200
    assert set(Counter(entry.foreground for entry in entries).values()) == {5}
    assert set(Counter(entry.background for entry in entries).values()) == {40}
    assert entries == module.composites()


def test_composites_follow_the_test_list(share):
    first, *_, last = module.composites()
    for entry, colour in ((first, (255, 0, 0, 255)), (last, (0, 255, 0, 255))):
        picture = Image.new("RGBA", (64, 64))
        picture.paste(colour, (16, 16, 48, 48))
        picture.save(share / FOLDERS["foregrounds"] / entry.foreground)
        Image.new("RGB", (300, 300), "blue").save(share / FOLDERS["backgrounds"] / entry.background)
    data = cutouts("test", share)
    assert (len(data), data.side) == (200, 256)
    assert data.names == [entry.name for entry in module.composites()]
    for index, channel in ((0, 0), (199, 1)):
        image, alpha, trimap = data[index]
        assert (image.shape, alpha.shape, trimap.shape) == ((3, 256, 256), (256, 256), (256, 256))
        assert image[channel][alpha == 255].float().mean() > 250
        assert image[2][alpha == 0].float().mean() > 250


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_packages_are_named(split, tmp_path):
    first = next(entry["file"] for entry in LISTED["foregrounds"] if entry["split"] == split)
    count = sum(counts[split] for counts in COUNTS.values())
    with pytest.raises(
        FileNotFoundError, match=rf"{first} must be a picture, got none; {count} of {count} .*: {OBTAIN}"
    ):
        cutouts(split, tmp_path)


def test_a_missing_background_is_named_and_that_of_the_other_split_is_not(share):
    (share / "backgrounds/mate/nature/Wood.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"Wood\.jpg must be a picture, got none; 1 of 206 are missing"):
        cutouts("train", share)
    assert len(cutouts("test", share)) == 200


def test_unknown_split():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        cutouts("val")  # type: ignore[call-overload]


@pytest.mark.data
@needs_packages
def test_the_pictures_installed_are_those_listed():
    train, backgrounds = cutouts("train")
    composites = cutouts("test").items
    for path in (*backgrounds, *(background for *_, background, _ in composites)):
        with Image.open(path) as image:
            assert min(image.size) >= 1000, path
    test = {foreground for _, foreground, *_ in composites}
    assert len(test) == 40
    for foreground in (*train, *test):
        color, alpha = read_foreground(foreground)
        assert max(color.shape) >= 96, foreground.name
        assert (alpha == 255).any(), foreground.name
        assert (alpha == 0).any(), foreground.name
        assert ((alpha > 8) & (alpha < 247)).any(), foreground.name


@pytest.mark.data
@needs_packages
def test_a_real_composite():
    image, alpha, trimap = cutouts("test")[0]
    assert image.dtype == alpha.dtype == trimap.dtype == torch.uint8
    assert image.float().std() > 10
    assert set(trimap.unique().tolist()) == {0, 128, 255}
    assert (trimap[(alpha > 0) & (alpha < 255)] == 128).all()
