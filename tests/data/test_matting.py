import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fadeup.data.matting import (
    UNKNOWN,
    ComposedImages,
    Foreground,
    MattingImages,
    compose,
    compose_test,
    fit_background,
    mapped_trimap,
    read_alpha,
    read_foreground,
    read_trimap,
    resized_cutout,
    trimap_from_alpha,
    trimap_from_mask,
    write_test_set,
)

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
ALPHAS = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 128, 255]))
KERNELS = st.integers(1, 9)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def disc(side=41, radius=12, soft=False):
    y, x = np.mgrid[:side, :side] - side // 2
    distance = np.hypot(y, x)
    if soft:
        return (255 * (radius + 0.5 - distance).clip(0, 1)).round().astype(np.uint8)
    return np.where(distance <= radius, 255, 0).astype(np.uint8)


# Foregrounds


def test_cut_out_with_an_alpha_channel(tmp_path):
    color, alpha = read_foreground(Foreground("x", save(tmp_path / "x.png", RGBA)))
    assert (color == RGBA[..., :3]).all()
    assert (alpha == RGBA[..., 3]).all()


def test_cut_out_of_grey_and_alpha_and_of_a_palette(tmp_path):
    color, alpha = read_foreground(Foreground("x", save(tmp_path / "la.png", RGBA[..., 2:])))
    assert (color == RGBA[..., 2:3]).all()
    assert (alpha == RGBA[..., 3]).all()
    palette = Image.fromarray((RGBA[..., 0] > 99).astype(np.uint8), "L").convert("P")
    palette.putpalette([9, 8, 7, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=bytes([0, 128]))
    color, alpha = read_foreground(Foreground("x", tmp_path / "p.png"))
    assert set(zip(*color.reshape(-1, 3).T.tolist(), alpha.ravel().tolist(), strict=True)) == {
        (9, 8, 7, 0),
        (40, 50, 60, 128),
    }


def test_cut_out_in_two_files(tmp_path):
    color, alpha = save(tmp_path / "fg.png", RGBA[..., :3]), save(tmp_path / "a.png", RGBA[..., 3])
    got = read_foreground(Foreground("x", color, alpha))
    assert (got[0] == RGBA[..., :3]).all()
    assert (got[1] == RGBA[..., 3]).all()


def test_alpha_of_16_bits_of_1_bit_and_of_three_equal_channels(tmp_path):
    deep = save(tmp_path / "deep.png", np.array([[0, 257, 128 * 257, 65535]], np.uint16))
    assert read_alpha(deep).tolist() == [[0, 1, 128, 255]]
    assert read_alpha(save(tmp_path / "bit.png", RGBA[..., 0] > 99)).tolist() == (255 * (RGBA[..., 0] > 99)).tolist()
    assert (read_alpha(save(tmp_path / "rgb.png", np.repeat(RGBA[..., :1], 3, 2))) == RGBA[..., 0]).all()


def test_cut_out_turned_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    color, alpha = read_foreground(Foreground("x", save(tmp_path / "x.png", RGBA, exif=exif)))
    assert (np.dstack((color, alpha)) == np.rot90(RGBA, 3)).all()


def test_cut_out_without_alpha_names_the_fix(tmp_path):
    path = save(tmp_path / "x.png", RGBA[..., :3])
    with pytest.raises(ValueError, match=r"x\.png must have an alpha channel, got mode RGB; save it as RGBA, or put"):
        read_foreground(Foreground("x", path))


@pytest.mark.parametrize("value", [0, 255])
def test_cut_out_that_is_opaque_or_invisible_everywhere(tmp_path, value):
    rgba = RGBA.copy()
    rgba[..., 3] = value
    message = rf"x\.png must have opaque and transparent pixels, got an alpha of {value} everywhere; cut"
    with pytest.raises(ValueError, match=message):
        read_foreground(Foreground("x", save(tmp_path / "x.png", rgba)))


def test_alpha_of_another_size_than_its_colours(tmp_path):
    color, alpha = save(tmp_path / "fg.png", RGBA[..., :3]), save(tmp_path / "a.png", RGBA[:4, :, 3])
    with pytest.raises(ValueError, match=r"a\.png must be 5 x 7 like its picture, got 4 x 7"):
        read_foreground(Foreground("x", color, alpha))


def test_damaged_missing_and_too_large_files(tmp_path):
    path = save(tmp_path / "x.png", RGBA)
    with pytest.raises(ValueError, match=r"x\.png must have at most 34 pixels, got 7 x 5"):
        read_foreground(Foreground("x", path), max_pixels=34)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"x\.png must be a whole picture, got 60 bytes"):
        read_foreground(Foreground("x", path))
    with pytest.raises(FileNotFoundError, match=r"none\.png must be a picture, got no such file"):
        read_alpha(tmp_path / "none.png")


def test_alpha_that_is_transparent_or_floating_point(tmp_path):
    with pytest.raises(ValueError, match=r"x\.png must be opaque grey, got transparent pixels; save it without"):
        read_alpha(save(tmp_path / "x.png", RGBA))
    with pytest.raises(ValueError, match=r"x\.tif must have 8 or 16 bits a value, got floating point; convert"):
        read_alpha(save(tmp_path / "x.tif", np.zeros((2, 2), np.float32)))


# Trimaps


def test_trimap_values_are_mapped_at_the_stated_thresholds(tmp_path):
    values = np.array([[0, 63, 64, 127, 128, 191, 192, 255]], np.uint8)
    expected = [[0, 0, 128, 128, 128, 128, 255, 255]]
    assert mapped_trimap(values).tolist() == expected
    assert read_trimap(save(tmp_path / "t.png", values), (1, 8)).tolist() == expected


def test_trimap_of_another_size(tmp_path):
    path = save(tmp_path / "t.png", np.full((4, 6), 128, np.uint8))
    with pytest.raises(ValueError, match=r"t\.png must be 5 x 6 like its picture, got 4 x 6"):
        read_trimap(path, (5, 6))


@pytest.mark.parametrize("value", [0, 2, 63, 192, 255])
def test_trimap_without_unknown_pixels(tmp_path, value):
    path = save(tmp_path / "t.png", np.full((4, 6), value, np.uint8))
    with pytest.raises(ValueError, match=r"t\.png must have unknown pixels \(64 to 191, best 128\), got none; paint"):
        read_trimap(path)


@given(ALPHAS, KERNELS, KERNELS)
def test_trimap_knows_only_what_alpha_says(alpha, foreground_kernel, background_kernel):
    trimap = trimap_from_alpha(alpha, foreground_kernel, background_kernel)
    assert set(np.unique(trimap)) <= {0, UNKNOWN, 255}
    assert (alpha[trimap == 255] == 255).all()
    assert (alpha[trimap == 0] == 0).all()
    assert (trimap[(alpha > 0) & (alpha < 255)] == UNKNOWN).all()


@given(ALPHAS, KERNELS, KERNELS)
def test_larger_kernels_leave_no_more_known(alpha, foreground_kernel, background_kernel):
    trimap = trimap_from_alpha(alpha, foreground_kernel, background_kernel)
    wider = trimap_from_alpha(alpha, foreground_kernel + 2, background_kernel + 2)
    assert (wider[trimap == UNKNOWN] == UNKNOWN).all()


@given(ALPHAS, KERNELS)
def test_inverted_alpha_inverts_the_trimap(alpha, kernel):
    trimap, inverse = trimap_from_alpha(alpha, kernel, 3), trimap_from_alpha(255 - alpha, 3, kernel)
    assert (inverse == np.where(trimap == UNKNOWN, UNKNOWN, 255 - trimap)).all()


def test_trimap_of_a_disc():
    """Erosion by an ellipse of 2 r + 1 moves a disc's edge by about r: a ring of known area."""
    trimap = trimap_from_alpha(disc(81, 25), 11, 7)
    ring = np.pi * (28.5**2 - 20.5**2)
    assert abs((trimap == UNKNOWN).sum() - ring) < 0.04 * ring
    assert trimap[40, 40] == 255
    assert trimap[0, 0] == 0


def test_trimap_is_not_framed_where_the_foreground_leaves_the_picture():
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, :15] = 255
    trimap = trimap_from_alpha(alpha, 5, 5)
    assert (trimap == trimap[:1]).all()
    assert trimap[0].tolist() == [255] * 13 + [128] * 4 + [0] * 13


@pytest.mark.parametrize("kind", [bool, np.uint8])
@pytest.mark.parametrize("width", [1, 3])
def test_trimap_from_a_mask_is_unknown_on_either_side_of_the_edge(kind, width):
    mask = np.zeros((9, 20), kind)
    mask[:, :10] = 1 if kind is bool else 200
    row = trimap_from_mask(mask, width)[4].tolist()
    assert row == [255] * (10 - width) + [128] * 2 * width + [0] * (10 - width)


def test_trimap_from_the_mask_of_a_disc():
    trimap = trimap_from_mask(disc(81, 25), 5)
    y, x = np.mgrid[:81, :81] - 40
    distance = np.hypot(y, x)
    assert (trimap[distance <= 25 - 6] == 255).all()
    assert (trimap[distance >= 25 + 7] == 0).all()
    assert (trimap[(distance > 21) & (distance < 29)] == UNKNOWN).all()


@pytest.mark.parametrize(("value", "kind"), [(0, "background"), (127, "background"), (128, "foreground")])
def test_trimap_from_an_empty_or_full_mask(value, kind):
    with pytest.raises(ValueError, match=rf"mask must have foreground \(above 127\) and background, got {kind} alone"):
        trimap_from_mask(np.full((4, 4), value, np.uint8), 3)


def test_trimap_width_below_1():
    with pytest.raises(ValueError, match=r"width must be 1 pixel or more, got 0\.5"):
        trimap_from_mask(disc() > 0, 0.5)


# Composition


def test_composition():
    front, behind = (RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(2))
    alpha = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    result = compose(front, alpha, behind)
    exact = (alpha[..., None] * front.astype(float) + (255 - alpha[..., None].astype(float)) * behind) / 255
    assert np.abs(result - exact).max() <= 0.5 + 1e-4
    assert (result[0] == behind[0]).all()
    assert (result[1] == front[1]).all()


@pytest.mark.parametrize("size", [(10, 8), (5, 20), (9, 16), (1, 1), (40, 7)])
@pytest.mark.parametrize("held", [(6, 9), (30, 30), (1, 1), (4, 100)])
def test_background_of_any_size_fits(held, size):
    background = RNG.integers(0, 256, (*held, 3), dtype=np.uint8)
    fitted = fit_background(background, size)
    assert fitted.shape == (*size, 3)
    if held[0] >= size[0] and held[1] >= size[1]:
        assert (fitted == background[: size[0], : size[1]]).all()


def test_smaller_background_is_enlarged_just_so_far_as_needed():
    background = RNG.integers(0, 256, (10, 20, 3), dtype=np.uint8)
    whole = cv2.resize(background, (50, 25), interpolation=cv2.INTER_CUBIC)
    assert (fit_background(background, (25, 30)) == whole[:, :30]).all()
    assert (fit_background(background, (24, 50)) == whole[:24]).all()


def test_slender_background_needs_no_gigabytes():
    assert fit_background(np.zeros((1, 60_000, 3), np.uint8), (2000, 40)).shape == (2000, 40, 3)


def test_resizing_keeps_hidden_colours_hidden():
    """Black where alpha is 0 must not darken the edge of a white disc, whatever the size."""
    alpha = disc(41, 12, soft=True)
    color = np.where(alpha[..., None] > 0, np.uint8(255), np.uint8(0)).repeat(3, 2)
    for size in ((20, 20), (33, 57), (90, 90), (1, 1)):
        colors, matte = resized_cutout(color, alpha, size)
        assert matte.shape == size
        assert colors[matte > 1].min() >= 250
        assert abs(matte.mean() - alpha.mean()) < 0.03 * 255


# Test sets


@pytest.fixture
def ingredients(tmp_path):
    color = RNG.integers(0, 256, (41, 41, 3), dtype=np.uint8)
    cutout = save(tmp_path / "in" / "disc.png", np.dstack((color, disc(soft=True))))
    background = save(tmp_path / "in" / "b.png", RNG.integers(0, 256, (70, 50, 3), dtype=np.uint8))
    return Foreground("disc", cutout), background


def cutout(height, width):
    alpha = np.zeros((height, width), np.uint8)
    alpha[height // 4 : height - height // 4, width // 4 : width - width // 4] = 255
    return np.full((height, width, 3), 200, np.uint8), alpha


@pytest.mark.parametrize("size", [(41, 41), (400, 30), (7, 900), (1, 1), (3, 5)])
@pytest.mark.parametrize("held", [(300, 500), (64, 40), (1, 1)])
def test_test_composite_of_any_sizes(size, held):
    background = RNG.integers(0, 256, (*held, 3), dtype=np.uint8)
    image, alpha, trimap = compose_test(*cutout(*size), background, 3, side=64)
    assert (image.shape, alpha.shape, trimap.shape) == ((3, 64, 64), (64, 64), (64, 64))
    assert {image.dtype, alpha.dtype, trimap.dtype} == {torch.uint8}
    assert (trimap[(alpha > 0) & (alpha < 255)] == UNKNOWN).all()
    assert (trimap == UNKNOWN).any()


def test_test_composite_follows_its_seed():
    color, alpha = cutout(50, 80)
    background = RNG.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    first, again, other = (compose_test(color, alpha, background, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_test_composites_fill_most_of_the_picture_and_never_leave_it():
    color = np.full((30, 200, 3), 9, np.uint8)
    alpha = np.full((30, 200), 255, np.uint8)
    extents = []
    for seed in range(30):
        matte = compose_test(color, alpha, np.zeros((300, 300, 3), np.uint8), seed, side=128)[1]
        columns = matte.amax(0).nonzero()
        extents.append(int(columns.max() - columns.min()) + 1)
    assert min(extents) >= 0.69 * 128
    assert max(extents) <= 128
    small = compose_test(color[:, :30], alpha[:, :30], np.zeros((300, 300, 3), np.uint8), 0, side=256)[1]
    assert int((small.amax(0) > 0).sum()) == 45  # at most 1.5 of its own


def test_composed_images_are_made_once_and_need_no_memory_in_workers(ingredients):
    data = ComposedImages([("a", *ingredients, 4), ("b", *ingredients, 5)], side=64)
    assert data.names == ["a", "b"]
    assert len(data) == 2
    assert data[1][0] is data[-1][0]
    assert data.__getstate__()["_made"] == {}
    with pytest.raises(IndexError):
        data[2]


def test_test_set_comes_back_bit_for_bit(tmp_path, ingredients):
    data = ComposedImages([(name, *ingredients, seed) for seed, name in enumerate("cab")], side=48)
    seen = []
    assert write_test_set(data, tmp_path / "out", on_sample=seen.append) == 3
    assert seen == ["c", "a", "b"]
    back = MattingImages(tmp_path / "out")
    assert back.names == ["a", "b", "c"]
    for name, sample in zip(back.names, back, strict=True):
        assert all(map(torch.equal, sample, data[data.names.index(name)]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["alpha_copy", "merged", "trimaps"]


def test_test_set_is_not_written_over_another(tmp_path, ingredients):
    data = ComposedImages([("a", *ingredients, 0)], side=48)
    write_test_set(data, tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"out must be a new or empty folder, got one with files; set overwrite"):
        write_test_set(data, tmp_path / "out")
    assert write_test_set(data, tmp_path / "out", overwrite=True) == 1
    other = ComposedImages([("b", *ingredients, 0)], side=48)
    with pytest.raises(FileExistsError, match=r"out must hold no other test set, got .*a\.png; remove it or set"):
        write_test_set(other, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "merged" / "b.png").exists()


@pytest.fixture
def layout(tmp_path):
    for folder, mode in (("images", "RGB"), ("alpha", "L"), ("trimap", "L")):
        for name in ("x", "y", "z"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new(mode, (6, 4), 120 if mode == "L" else (1, 2, 3)).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def test_test_set_under_other_names_and_suffixes(layout):
    (layout / "images" / "x.png").unlink()
    Image.new("RGB", (6, 4)).save(layout / "images" / "x.jpg")
    data = MattingImages(layout)
    assert data.names == ["x", "y", "z"]
    image, alpha, trimap = data[1]
    assert image.shape == (3, 4, 6)
    assert image[:, 0, 0].tolist() == [1, 2, 3]
    assert alpha.unique().tolist() == [120]
    assert trimap.unique().tolist() == [128]


def test_test_set_without_a_folder(tmp_path, layout):
    for path in (layout / "trimap").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"trimap must hold pictures .*, got none"):
        MattingImages(layout)
    (layout / "trimap").rmdir()
    with pytest.raises(FileNotFoundError, match=r"must hold a folder trimaps or trimap, got none; pictures, their alp"):
        MattingImages(layout)


@pytest.mark.parametrize("folder", ["alpha", "trimap", "images"])
def test_test_set_with_missing_partners(layout, folder):
    (layout / folder / "y.png").unlink()
    with pytest.raises(ValueError, match=r"must hold a picture for each of images, got 1 without partner, such as y"):
        MattingImages(layout)


@pytest.mark.parametrize("folder", ["alpha", "trimap"])
def test_test_set_with_a_picture_of_another_size(layout, folder):
    Image.new("L", (5, 4), 120).save(layout / folder / "y.png")
    data = MattingImages(layout)
    with pytest.raises(ValueError, match=rf"{folder}/y\.png must be 4 x 6 like its picture, got 4 x 5"):
        data[1]
    assert data[0][0].shape == (3, 4, 6)
