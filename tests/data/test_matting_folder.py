import numpy as np
import pytest
import torch
from PIL import Image

from fadeup.data.matting import ComposedImages, MattingImages, write_test_set
from fadeup.data.matting_folder import matting_folder

RNG = np.random.default_rng(0)


def save(path, *size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for n in range(20):
        save(tmp_path / "foregrounds" / f"f{n:02d}.png", 9, 12, 4)
    for n in range(6):
        save(tmp_path / "backgrounds" / f"b{n}.png", 30, 40, 3)
    return tmp_path


def test_without_a_test_folder_a_seed_splits(root):
    foregrounds, backgrounds = matting_folder("train", root)
    assert len(foregrounds) == 17
    assert [path.stem for path in backgrounds] == [f"b{n}" for n in range(6)]
    data = matting_folder("test", root)
    assert isinstance(data, ComposedImages)
    held_out = {foreground.name for _, foreground, _, _ in data.items}
    assert len(held_out) == 3
    assert not held_out & {item.name for item in foregrounds}
    assert len(data) == len(set(data.names)) == 12
    assert held_out != {foreground.name for _, foreground, _, _ in matting_folder("test", root, seed=1).items}
    again = matting_folder("test", root)
    assert all(map(torch.equal, data[5], again[5]))
    assert data[5][0].shape == (3, 256, 256)


def test_with_a_test_folder_all_cut_outs_are_for_training(root):
    made = matting_folder("test", root)
    write_test_set(made, root / "test")
    assert len(matting_folder("train", root)[0]) == 20
    data = matting_folder("test", root)
    assert isinstance(data, MattingImages)
    assert data.names == sorted(made.names)


def test_pairs_of_colours_and_alphas(tmp_path):
    for n in range(4):
        save(tmp_path / "foregrounds" / f"{n}.jpg", 9, 12, 3)
        save(tmp_path / "alphas" / f"{n}.png", 9, 12)
    save(tmp_path / "backgrounds" / "b.png", 9, 9, 3)
    foregrounds, _ = matting_folder("train", tmp_path)
    assert len(foregrounds) == 3
    assert all(item.alpha is not None and item.alpha.stem == item.color.stem for item in foregrounds)
    (tmp_path / "alphas" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"alphas must hold an alpha for each foreground, got 1 without .* such as 2"):
        matting_folder("train", tmp_path)


@pytest.mark.parametrize("folder", ["foregrounds", "backgrounds"])
def test_missing_and_empty_folders_name_the_fix(root, folder):
    for path in (root / folder).iterdir():
        path.unlink()
    message = rf"{folder} must be a folder of pictures, got {{}}; put cut-outs .* under foregrounds and photographs"
    with pytest.raises(FileNotFoundError, match=message.format("an empty one")):
        matting_folder("train", root)
    (root / folder).rmdir()
    with pytest.raises(FileNotFoundError, match=message.format("no such folder")):
        matting_folder("test", root)


def test_too_few_for_two_splits(tmp_path):
    save(tmp_path / "foregrounds" / "f.png", 9, 12, 4)
    save(tmp_path / "backgrounds" / "b.png", 9, 9, 3)
    with pytest.raises(ValueError, match=r"foregrounds must have cut-outs enough for both splits, got 1; add some"):
        matting_folder("test", tmp_path)


def test_unknown_split(root):
    with pytest.raises(ValueError, match=r"split must be 'train' or 'test', got 'val'"):
        matting_folder("val", root)


def test_files_of_one_name_in_two_folders_have_names_of_their_own(root):
    for n in range(4):
        (root / "backgrounds" / f"b{n}.png").unlink()
        save(root / "backgrounds" / f"{n}" / "same.png", 30, 40, 3)
    names = matting_folder("test", root).names
    assert len(set(names)) == len(names) == 12
    assert not any("/" in name for name in names)
