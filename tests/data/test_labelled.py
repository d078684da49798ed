import pickle
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fadeup.data.labelled import (
    LabelledImages,
    distinct_colours,
    find_pairs,
    find_root,
    read_label,
    read_photo,
    seeded_split,
)

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]
LABEL = np.random.default_rng(1).integers(0, 4, (5, 7), dtype=np.uint8)


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def write_png(path, width, height, bits, rows):
    """A grey PNG of any depth, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def photo_of(array):
    return torch.from_numpy(np.broadcast_to(array.reshape(5, 7, -1), (5, 7, 3)).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_colour_photo_comes_back(tmp_path, suffix):
    photo = read_photo(save(tmp_path / f"x.{suffix}", RGB, **({"lossless": True} if suffix == "webp" else {})))
    assert photo.dtype == torch.uint8
    assert photo.is_contiguous()
    assert torch.equal(photo, photo_of(RGB))


def test_jpeg_and_cmyk_are_nearly_the_picture(tmp_path):
    smooth = np.broadcast_to(np.array([200, 100, 50], np.uint8), (16, 24, 3))
    for mode in ("RGB", "CMYK"):
        photo = read_photo(save(tmp_path / f"{mode}.jpg", smooth, mode, quality=95))
        assert photo.shape == (3, 16, 24)
        assert (photo.float().mean((1, 2)) - torch.tensor([200.0, 100, 50])).abs().max() < 4


def test_grey_bit_and_palette_photos(tmp_path):
    assert torch.equal(read_photo(save(tmp_path / "l.png", GREY)), photo_of(GREY))
    assert torch.equal(read_photo(save(tmp_path / "1.png", GREY > 99)), photo_of(np.uint8(255) * (GREY > 99)))
    image = Image.fromarray(RGB).quantize(16)
    image.save(tmp_path / "p.png")
    assert torch.equal(read_photo(tmp_path / "p.png"), photo_of(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    exact = np.array([[0, 257, 128 * 257, 65535, 128, 129]], np.uint16)
    photo = read_photo(save(tmp_path / f"x.{suffix}", exact))
    assert photo[0].tolist() == [[0, 1, 128, 255, 0, 1]]


def test_transparent_parts_are_white(tmp_path):
    alpha = np.dstack([RGB, np.full((5, 7), 255, np.uint8)])
    alpha[0, :, 3] = 0
    expected = photo_of(RGB).clone()
    expected[:, 0] = 255
    assert torch.equal(read_photo(save(tmp_path / "rgba.png", alpha)), expected)
    palette = Image.fromarray((LABEL > 0).astype(np.uint8), "L").convert("P")
    palette.putpalette([9, 9, 9, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=bytes([0, 255]))  # alpha for each index
    photo = read_photo(tmp_path / "p.png")
    assert set(map(tuple, photo.flatten(1).T.tolist())) == {(255, 255, 255), (40, 50, 60)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_of_photo_and_label(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    mirrored = orientation in (2, 4, 5, 7)

    def upright(array):
        array = np.rot90(array, turned)
        return (array[:, ::-1] if mirrored and orientation in (2, 4) else array[::-1] if mirrored else array).copy()

    photo = read_photo(save(tmp_path / "x.png", RGB, exif=exif))
    assert torch.equal(photo, torch.from_numpy(upright(RGB)).permute(2, 0, 1))
    assert torch.equal(read_label(save(tmp_path / "y.png", LABEL, exif=exif)), torch.from_numpy(upright(LABEL)))


def test_smallest_and_large_photo(tmp_path):
    assert read_photo(save(tmp_path / "1.png", RGB[:1, :1])).shape == (3, 1, 1)
    assert read_photo(save(tmp_path / "big.jpg", np.zeros((4000, 6000, 3), np.uint8))).shape == (3, 4000, 6000)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.png must be a whole picture, got {len(content)} bytes"):
        read_photo(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
def test_truncated_picture(tmp_path, suffix):
    path = save(tmp_path / f"x.{suffix}", np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=rf"x\.{suffix} must be a whole picture, got"):
        read_photo(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png must be a picture, got no such file"):
        read_photo(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="must be a picture, got a folder"):
        read_photo(tmp_path)


@pytest.mark.parametrize("side", [10_000, 60_000])  # above Pillow's warning, above its refusal
def test_decompression_bomb(tmp_path, side):
    path = write_png(tmp_path / "bomb.png", side, side, 1, b"")
    with pytest.raises(ValueError, match=r"bomb\.png must have at most 89478485 pixels, got"):
        read_photo(path)


def test_more_pixels_than_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"x\.png must have at most 30 pixels, got 7 x 5"):
        read_photo(save(tmp_path / "x.png", RGB), max_pixels=30)


def test_float_photo(tmp_path):
    with pytest.raises(ValueError, match=r"x\.tif must have 8 or 16 bits a value, got floating point"):
        read_photo(save(tmp_path / "x.tif", GREY.astype(np.float32)))


def test_32_bit_photo(tmp_path):
    with pytest.raises(ValueError, match=r"x\.tif must have 8 or 16 bits a value, got 70000 to 70000"):
        read_photo(save(tmp_path / "x.tif", np.full((2, 2), 70000, np.int32)))


def test_labels_of_all_kinds(tmp_path):
    expected = torch.from_numpy(LABEL)
    assert torch.equal(read_label(save(tmp_path / "l.png", LABEL)), expected)
    assert torch.equal(read_label(save(tmp_path / "i16.png", LABEL.astype(np.uint16))), expected)
    assert torch.equal(read_label(save(tmp_path / "i.tif", LABEL.astype(np.int32))), expected)
    assert torch.equal(read_label(save(tmp_path / "rgb.png", np.dstack([LABEL] * 3))), expected)
    assert torch.equal(read_label(save(tmp_path / "rgba.png", np.dstack([LABEL] * 3), "RGBA")), expected)
    assert torch.equal(read_label(save(tmp_path / "la.png", LABEL, "LA")), expected)
    assert torch.equal(read_label(save(tmp_path / "1.png", LABEL > 1)), (expected > 1).byte())


def test_palette_label_gives_indices_and_not_colours(tmp_path):
    image = Image.fromarray(LABEL).convert("P")
    image.putdata(LABEL.flatten().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 255, 0, 0, 0, 0, 255])  # two indices of one colour
    image.save(tmp_path / "p.png")
    assert torch.equal(read_label(tmp_path / "p.png"), torch.from_numpy(LABEL))


@pytest.mark.parametrize(("bits", "row", "values"), [(4, 0x1F, [1, 15]), (2, 0b00011011, [0, 1, 2, 3])])
def test_grey_label_of_few_bits_is_not_spread_over_255(tmp_path, bits, row, values):
    path = write_png(tmp_path / "x.png", len(values), 1, bits, bytes([0, row]))
    assert read_label(path).tolist() == [values]
    assert read_photo(path)[0].tolist() == [[value * 255 // (2**bits - 1) for value in values]]


@pytest.mark.parametrize(("value", "kind", "suffix"), [(256, np.uint16, "png"), (-1, np.int32, "tif")])
def test_label_value_beyond_a_byte(tmp_path, value, kind, suffix):
    path = save(tmp_path / f"x.{suffix}", np.full((2, 2), value, kind))
    with pytest.raises(ValueError, match=rf"x\.{suffix} must hold class numbers of at most 255, got {value}"):
        read_label(path)


def test_colour_coded_label(tmp_path):
    with pytest.raises(ValueError, match=r"x\.png must hold class numbers, got colours; save each colour's number"):
        read_label(save(tmp_path / "x.png", RGB))


def test_transparent_label(tmp_path):
    with pytest.raises(ValueError, match=r"x\.png must be opaque, got transparent pixels"):
        read_label(save(tmp_path / "x.png", np.dstack([LABEL] * 4)))


def test_jpeg_label(tmp_path):
    with pytest.raises(ValueError, match=r"x\.jpg must be lossless \(PNG\), got JPEG"):
        read_label(save(tmp_path / "x.jpg", LABEL))


def test_float_label(tmp_path):
    with pytest.raises(ValueError, match=r"x\.tif must be grey or palette, got mode F"):
        read_label(save(tmp_path / "x.tif", LABEL.astype(np.float32)))


@pytest.fixture
def folders(tmp_path):
    for name in ("b", "a", "deep/c"):
        save(tmp_path / "images" / f"{name}.jpg", RGB)
        save(tmp_path / "labels" / f"{name}.png", LABEL)
    return SimpleNamespace(images=tmp_path / "images", labels=tmp_path / "labels")


def test_pairs_match_by_name_in_order(folders):
    (folders.images / "notes.txt").write_text("no picture")
    (folders.images / "._a.jpg").write_bytes(b"no picture either")
    pairs = find_pairs(folders.images, folders.labels)
    assert [photo.relative_to(folders.images).as_posix() for photo, _ in pairs] == ["a.jpg", "b.jpg", "deep/c.jpg"]
    assert [label.relative_to(folders.labels).as_posix() for _, label in pairs] == ["a.png", "b.png", "deep/c.png"]


def test_missing_labels_are_named(folders):
    for number in range(5):
        save(folders.images / f"new{number}.png", RGB)
    with pytest.raises(ValueError, match=r"labels must hold a label for .* new0, new1, new2 and 2 more missing of 8"):
        find_pairs(folders.images, folders.labels)


def test_extra_labels_are_named(folders):
    save(folders.labels / "new.png", LABEL)
    with pytest.raises(ValueError, match=r"images must hold a photograph for each label, got new missing of 4"):
        find_pairs(folders.images, folders.labels)


def test_two_photos_of_one_name(folders):
    save(folders.images / "a.png", RGB)
    with pytest.raises(ValueError, match=r"must hold one file of a name, got a\.jpg and a\.png; remove one"):
        find_pairs(folders.images, folders.labels)


def test_no_pictures_and_no_folder(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty must hold pictures \(\.jpg.*\), got none"):
        find_pairs(tmp_path / "empty", folders.labels)
    with pytest.raises(FileNotFoundError, match="nowhere must be a folder of pictures, got no such folder"):
        find_pairs(folders.images, tmp_path / "nowhere")


def test_root_from_argument_environment_and_default(tmp_path, monkeypatch):
    (tmp_path / "set" / "train").mkdir(parents=True)
    (tmp_path / "set" / "train" / "x").touch()
    assert find_root(tmp_path / "set", "set", ["train"], "get it") == tmp_path / "set"
    monkeypatch.setenv("FADEUP_DATA", str(tmp_path))
    assert find_root(None, "set", ["train"], "get it") == tmp_path / "set"
    monkeypatch.delenv("FADEUP_DATA")
    monkeypatch.chdir(tmp_path)
    hint = r"data/set/train must be .*, got no such folder; get it; then pass the root, or set FADEUP_DATA"
    with pytest.raises(FileNotFoundError, match=hint):
        find_root(None, "set", ["train"], "get it")
    (tmp_path / "set" / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"val must be a folder of pictures, got an empty one; get it$"):
        find_root(tmp_path / "set", "set", ["val"], "get it")


def test_seeded_split_does_not_depend_on_order_and_parts_the_set(tmp_path):
    pairs = [(tmp_path / f"{n}.jpg", tmp_path / f"{n}.png") for n in range(40)]
    train, test = (seeded_split(pairs, split, 0) for split in ("train", "test"))
    assert (len(train), len(test)) == (34, 6)
    assert {*train, *test} == set(pairs)
    assert seeded_split(pairs[::-1], "train", 0) == train
    assert seeded_split(pairs, "train", 1) != train
    assert [photo.stem for photo, _ in test] == ["11", "19", "23", "27", "28", "32"]  # the same on every machine


def test_colours_are_distinct():
    assert len(np.unique(distinct_colours(150), axis=0)) == 150


def labelled(folders, classes=("a", "b", "c", "d"), **options):
    return LabelledImages("set", "train", find_pairs(folders.images, folders.labels), classes, **options)


def test_samples_and_counts(folders):
    data = labelled(folders)
    assert len(data) == 3
    assert len(list(data)) == 3  # iteration ends
    image, label = data[-1]
    assert image.shape == (3, 5, 7)
    assert torch.equal(label, torch.from_numpy(LABEL))
    assert data.counts().tolist() == (3 * np.bincount(LABEL.flatten(), minlength=4)).tolist()
    with pytest.raises(IndexError):
        data[3]


def test_decoding_ignores_and_shifts(folders):
    data = labelled(folders, ("b", "c", "d"), decode={0: 255, 1: 0, 2: 1, 3: 2})
    label = data[0][1].numpy()
    assert np.array_equal(label == 255, LABEL == 0)
    assert np.array_equal(label[LABEL > 0], LABEL[LABEL > 0] - 1)
    assert data.counts().sum() == 3 * (LABEL > 0).sum()


def test_cache_reads_once_and_does_not_travel(folders):
    data = labelled(folders, cache=True)
    first = data[0]
    data.pairs[0][0].unlink()
    assert data[0][0] is first[0]
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(data))[0]


def test_workers_read_the_same(folders):
    data = labelled(folders)
    loader = DataLoader(data, num_workers=1, multiprocessing_context="fork")
    assert all(torch.equal(label[0], data[i][1]) for i, (_, label) in enumerate(loader))


def test_label_outside_the_classes(folders):
    save(folders.labels / "a.png", np.full((5, 7), 4, np.uint8))
    with pytest.raises(ValueError, match=r"a\.png must have labels of set's 4 classes, stored as 0-3, 255, got 4"):
        labelled(folders)[0]


def test_label_of_another_size(folders):
    save(folders.labels / "a.png", LABEL[:4])
    with pytest.raises(ValueError, match=r"a\.png must have the size of .*a\.jpg, \(5, 7\), got \(4, 7\)"):
        labelled(folders)[0]


def test_label_that_lacks_the_rotation(folders):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folders.images / "a.jpg", RGB, exif=exif)
    with pytest.raises(ValueError, match=r"got \(5, 7\) \(height, width\); is the photograph's EXIF rotation missing"):
        labelled(folders)[0]


def test_arguments_that_do_not_fit(folders):
    with pytest.raises(ValueError, match="classes must be 1 to 255 names, got 0"):
        labelled(folders, ())
    with pytest.raises(ValueError, match=r"palette must be \(4, 3\), got \(2, 3\)"):
        labelled(folders, palette=np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"decode must map to 0\.\.3 or 255, got 1: 4"):
        labelled(folders, decode={1: 4})
