import numpy as np
import pytest
from PIL import Image

from fadeup.data.folder import folder


def write(root, part, stems, value=1):
    for kind in ("images", "labels"):
        (root / kind / part).mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", (2, 1)).save(root / "images" / part / f"{stem}.jpg")
        Image.fromarray(np.array([[value, 255]], np.uint8)).save(root / "labels" / part / f"{stem}.png")


@pytest.fixture
def parts(tmp_path):
    write(tmp_path, "train", "abc", 3)
    write(tmp_path, "val", "xy", 1)
    return tmp_path


def test_split_folders(parts):
    assert [photo.stem for photo, _ in folder("train", parts).pairs] == ["a", "b", "c"]
    data = folder("val", parts)
    assert data.name == parts.name
    assert data[1][1].tolist() == [[1, 255]]


def test_classes_from_training_labels_file_or_argument(parts):
    assert folder("val", parts).classes == ("class 0", "class 1", "class 2", "class 3")
    (parts / "classes.txt").write_text("sky\n\n house \n", encoding="utf-8")
    assert folder("val", parts).classes == ("sky", "house")
    assert folder("val", parts, classes=("a", "b", "c")).classes == ("a", "b", "c")


def test_label_beyond_the_named_classes(parts):
    (parts / "classes.txt").write_text("sky\nhouse\n")
    with pytest.raises(ValueError, match=r"a\.png must have labels of .*'s 2 classes, stored as 0-1, 255, got 3"):
        folder("train", parts)[0]


def test_without_split_folders_a_seed_splits(tmp_path):
    write(tmp_path, "", [f"p{n}" for n in range(20)])
    names = {
        (split, seed): {photo.stem for photo, _ in folder(split, tmp_path, seed=seed).pairs}
        for split in ("train", "val")
        for seed in (0, 1)
    }
    assert (len(names["train", 0]), len(names["val", 0])) == (17, 3)
    assert not names["train", 0] & names["val", 0]
    assert names["val", 0] != names["val", 1]


def test_too_few_for_two_splits(tmp_path):
    write(tmp_path, "", "a")
    with pytest.raises(ValueError, match=r"images must have pictures enough for both splits, got 1; add some"):
        folder("val", tmp_path)


def test_missing_folders(tmp_path, parts):
    with pytest.raises(FileNotFoundError, match=r"none/images must be a folder of pictures, got no such folder; put"):
        folder("train", tmp_path / "none")
    for path in (parts / "labels" / "val").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/val must be a folder of pictures, got an empty one; put"):
        folder("val", parts)


def test_label_without_photo(parts):
    (parts / "images" / "train" / "b.jpg").unlink()
    with pytest.raises(ValueError, match=r"images/train must hold a photograph for each label, got b missing of 3"):
        folder("train", parts)


def test_empty_list_of_classes(parts):
    (parts / "classes.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"classes\.txt must have a class name on each line, got none"):
        folder("train", parts)


def test_labels_that_are_all_ignored(tmp_path):
    write(tmp_path, "train", "abc", 255)
    write(tmp_path, "val", "x", 1)
    with pytest.raises(ValueError, match="labels must have a training label other than 255, got none"):
        folder("val", tmp_path)


def test_unknown_split(parts):
    with pytest.raises(ValueError, match="split must be 'train' or 'val', got 'test'"):
        folder("test", parts)
