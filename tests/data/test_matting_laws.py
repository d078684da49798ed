"""Laws of cut-outs, trimaps and composites, beside the cases of the modules' own tests."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fadeup.data import compositing
from fadeup.data.compositing import TrainComposites, affine, jittered
from fadeup.data.matting import (
    UNKNOWN,
    Foreground,
    compose_test,
    read_alpha,
    resized_cutout,
    trimap_from_alpha,
    trimap_from_mask,
)

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
forms = pytest.mark.parametrize("adapted", [False, True], ids=["published", "adapted"])


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def alphas(size, seed):
    """Soft and hard values, with stretches of 0 and 255."""
    values = np.random.default_rng(seed).integers(-400, 656, size).clip(0, 255).astype(np.uint8)
    return cv2.blur(values, (3, 1)) if seed % 2 else values


def ellipse(height, width):
    """Alpha with a soft border, 0 at the corners."""
    rows, columns = np.mgrid[:height, :width]
    far = np.hypot((rows - (height - 1) / 2) / height, (columns - (width - 1) / 2) / width)
    return (255 * (4 - 10 * far)).clip(0, 255).astype(np.uint8)


def cutout(path, color, alpha):
    Image.fromarray(np.dstack((np.broadcast_to(color, (*alpha.shape, 3)).astype(np.uint8), alpha))).save(path)
    return Foreground(path.stem, path)


def photo(path, height, width, value):
    Image.fromarray(np.broadcast_to(value, (height, width, 3)).astype(np.uint8)).save(path)
    return path


def drawn(data, index, seed):
    torch.manual_seed(seed)
    return data[index]


def test_alphas_of_16_bits_are_rounded(tmp_path):
    deep = np.array([[0, 128, 129, 65535 - 129, 65535 - 128, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_alpha(tmp_path / "deep.png").tolist() == [[0, 0, 1, 254, 255, 255]]


# Trimaps


@given(sizes, st.integers(0, 99))
def test_kernels_of_one_erode_nothing(size, seed):
    alpha = alphas(size, seed)
    assert ((trimap_from_alpha(alpha, 1, 1) == UNKNOWN) == ((alpha > 0) & (alpha < 255))).all()


@pytest.mark.parametrize(("inside", "outside"), [(9, 1), (1, 9), (5, 15), (29, 21)])
def test_bands_are_half_their_kernels_wide(inside, outside):
    edge = np.repeat(np.arange(60) >= 30, 3).reshape(60, 3) * np.uint8(255)
    band = np.repeat([0, UNKNOWN, 255], [30 - outside // 2, outside // 2 + inside // 2, 30 - inside // 2])
    assert (trimap_from_alpha(edge, inside, outside) == band[:, None]).all()
    rows, columns = np.mgrid[:121, :121] - 60
    beyond = np.hypot(rows, columns) - 30
    unknown = trimap_from_alpha(np.where(beyond <= 0, 255, 0), inside, outside) == UNKNOWN
    assert unknown[(beyond > 1.5 - inside // 2) & (beyond < outside // 2 - 1.5)].all()
    assert not unknown[(beyond < -1.5 - inside // 2) | (beyond > outside // 2 + 1.5)].any()


@pytest.mark.parametrize("value", [0, 255])
def test_the_pictures_border_erodes_nothing(value):
    assert (trimap_from_alpha(np.full((9, 7), value, np.uint8), 29, 29) == value).all()


@given(sizes.filter(lambda size: size != (1, 1)), st.integers(0, 99), st.floats(1, 12))
def test_what_is_near_the_other_side_of_a_mask_is_unknown(size, seed, width):
    mask = alphas(size, seed) > 127
    mask.flat[0], mask.flat[-1] = True, False
    trimap = trimap_from_mask(mask, width)
    for place in np.ndindex(size):
        distance = min(math.dist(place, other) for other in np.argwhere(mask != mask[place]))
        if abs(distance - width) > 1e-3:  # rounded
            assert trimap[place] == (UNKNOWN if distance < width else 255 * mask[place])
    assert (trimap == trimap_from_mask(mask.astype(np.uint8) + 127, width)).all()


@pytest.mark.parametrize("width", [3.3, 7.5, 12.3])
def test_the_band_around_a_spot_is_round(width):
    rows, columns = np.mgrid[:41, :41] - 20
    distance = np.hypot(rows, columns)
    assert ((trimap_from_mask(distance == 0, width) == UNKNOWN) == (distance <= width)).all()


# Colours that alpha hides


@given(sizes, sizes, st.integers(0, 99))
def test_resizing_does_not_see_what_alpha_hides(size, other, seed):
    color, alpha = noise(*size, 3, seed=seed), alphas(size, seed)
    black, white = (np.where(alpha[..., None] == 0, value, color).astype(np.uint8) for value in (0, 255))
    for one, same in zip(resized_cutout(black, alpha, other), resized_cutout(white, alpha, other), strict=True):
        assert (one == same).all()


@given(sizes, sizes, st.integers(0, 99))
def test_a_flat_colour_stays_flat(size, other, seed):
    color, matte = resized_cutout(np.full((*size, 3), 180, np.uint8), alphas(size, seed), other)
    assert np.abs(color[matte > 0].astype(int) - 180).max(initial=0) <= 1


@forms
def test_composites_do_not_show_what_alpha_hides(tmp_path, adapted):
    alpha, back = ellipse(70, 50), photo(tmp_path / "b.png", 90, 90, noise(90, 90, 3))
    colors = (np.where(alpha[..., None] == 0, value, noise(70, 50, 3)) for value in (0, 255))
    fronts = [cutout(tmp_path / f"f{n}.png", color, alpha) for n, color in enumerate(colors)]
    data = [TrainComposites([front], [back], crop=64, adapted=adapted) for front in fronts]
    for seed in range(12):
        (black, target), (white, _) = (drawn(one, 0, seed) for one in data)
        assert torch.equal(black, white)
        assert 0 < target[0].mean() < 1
    one, other = (compose_test(np.asarray(Image.open(f.color))[..., :3], alpha, noise(9, 9, 3), 0) for f in fronts)
    assert torch.equal(one[0], other[0])


# Steps of the training pipeline


@pytest.mark.parametrize(
    ("angle", "scales", "target"),
    [
        (0, (1, 1), (1, 2)),
        (90, (1, 1), (2, 5)),  # clockwise, as rows run downwards
        (-90, (1, 1), (4, 1)),
        (180, (1, 1), (5, 4)),
        (0, (-1, 1), (1, 4)),
        (0, (1, -1), (5, 2)),
    ],
)
def test_where_a_map_moves_a_pixel(angle, scales, target):
    picture = np.zeros((7, 7), np.uint8)
    picture[1, 2] = 255
    matrix = affine((7, 7), angle, np.array(scales), np.zeros(2))
    moved = cv2.warpAffine(picture, matrix, (7, 7), flags=cv2.INTER_NEAREST)
    assert np.argwhere(moved).tolist() == [list(target)]


def test_scales_and_shears_about_the_centre():
    # (x, y) of points 4 to the right of the centre (10, 7) and 4 below it
    points = np.array([[14, 7, 1], [10, 11, 1]]).T
    far = 4 * np.tan(np.radians(10))
    for angle, scales, shears, expected in (
        (0, (1.25, 0.8), (0, 0), [[15, 10], [7, 10.2]]),
        (0, (1, 1), (10, 0), [[14, 10 + far], [7, 11]]),
        (0, (1, 1), (0, 10), [[14, 10], [7 + far, 11]]),
        (90, (1.25, 1), (0, 0), [[10, 6], [12, 7]]),
        (90, (1.25, 0.8), (10, 0), [[10, 6.8], [12, 7 + 1.25 * far]]),
    ):
        assert affine((15, 21), angle, np.array(scales), np.array(shears)) @ points == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("side", "adapted", "turned"), [(39, False, False), (40, False, True), (39, True, True)])
def test_what_is_drawn_for_the_map_and_how_often_a_cutout_is_enlarged(tmp_path, monkeypatch, side, adapted, turned):
    drawings = []

    def spied(*drawing):
        drawings.append(drawing)
        return affine(*drawing)

    monkeypatch.setattr(compositing, "affine", spied)
    front, back = cutout(tmp_path / "f.png", 90, ellipse(9, side)), photo(tmp_path / "b.png", 50, 50, 9)
    data = TrainComposites([front], [back], crop=4, enlarged=30, rotate_from=40, adapted=adapted, cache=True)
    for seed in range(200):
        drawn(data, 0, seed)
    enlarged = [drawing[0] == (30, 30) for drawing in drawings]
    assert sum(enlarged) == 0 if adapted else 30 <= sum(enlarged) <= 70
    angles = np.array([drawing[1] for drawing, one in zip(drawings, enlarged, strict=True) if not one])
    assert (25 < angles.max() <= 30 and -30 <= angles.min() < -25) if turned else not angles.any()
    scales = np.array([drawing[2] for drawing in drawings])
    assert 0.8 <= np.abs(scales).min() < 0.85
    assert 1.2 < np.abs(scales).max() <= 1.25
    assert (np.abs((scales < 0).mean(0) - 0.5) < 0.15).all()
    shears = np.array([drawing[3] for drawing in drawings])
    assert 9 < np.abs(shears).max() <= 10


def test_a_cutout_never_lies_before_itself(tmp_path):
    fronts = [cutout(tmp_path / f"f{n}.png", 90, ellipse(12, 12)) for n in range(3)]
    data = TrainComposites(fronts, [photo(tmp_path / "b.png", 20, 20, 9)], crop=8, cache=True)
    seen, read = [], data._read
    data._read = lambda index: seen.append(index) or read(index)
    others = []
    for seed in range(60):
        seen.clear()
        drawn(data, 0, seed)
        assert (seen[0], seen[-1]) == (0, 3)
        others += seen[1:-1]
    assert set(others) == {1, 2}
    assert 18 <= len(others) <= 42


@forms
@pytest.mark.parametrize("crop", [16, 33])
def test_an_unknown_pixel_is_the_crops_centre(tmp_path, adapted, crop):
    front = cutout(tmp_path / "f.png", 90, ellipse(120, 130))
    data = TrainComposites([front], [photo(tmp_path / "b.png", 200, 200, 9)], crop=crop, adapted=adapted)
    assert all(drawn(data, 0, seed)[1][1, crop // 2, crop // 2] == 1 for seed in range(20))


@forms
def test_the_foregrounds_colours_alone_are_disturbed(tmp_path, adapted):
    front, back = cutout(tmp_path / "f.png", (200, 60, 60), ellipse(60, 60)), (10, 77, 200)
    data = TrainComposites([front], [photo(tmp_path / "b.png", 90, 90, back)], crop=24, adapted=adapted)
    colors = set()
    for seed in range(10):
        _, target = drawn(data, 0, seed)
        assert torch.equal(target[5:], (torch.tensor(back) / 255)[:, None, None].expand(3, 24, 24))
        there = {tuple(color) for color in target[2:5][:, target[0] == 1].T.tolist()}
        assert len(there) <= 1  # a flat colour stays flat
        colors |= there
    assert len(colors) > 4


def test_the_reach_of_the_disturbance_follows_from_what_is_seen():
    color = np.full((2, 2, 3), 0.2, np.float32)
    color[0] = 1.0
    bright = np.array([[True, True], [False, False]])
    for seen, reach in ((bright, 0.01), (~bright, 0.09), (bright & ~bright, 0.01)):
        values = [jittered(color, seen, np.random.default_rng(seed))[1].max() for seed in range(200)]
        assert max(abs(value - 0.2) for value in values) == pytest.approx(reach, rel=0.05)


def test_saturation_and_value_are_reflected_at_one():
    red = np.array([[[1, 0, 0]]], np.float32)
    for seed in range(50):
        changed = jittered(red, np.ones((1, 1), bool), np.random.default_rng(seed))
        assert 0 < changed.min() <= changed.max() < 1


def test_all_of_a_picture_turns_by_one_angle():
    color = np.array([[[0.9, 0.3, 0.3], [0.3, 0.9, 0.4], [0.2, 0.3, 0.8]]], np.float32)
    turns = []
    for seed in range(50):
        changed = jittered(color, np.ones((1, 3), bool), np.random.default_rng(seed))
        before, after = (cv2.cvtColor(x, cv2.COLOR_RGB2HSV)[..., 0] for x in (color, changed))
        turn = (after - before + 180) % 360 - 180
        assert np.ptp(turn) < 0.1
        turns.append(turn.mean())
    assert -40.1 < min(turns) < -35
    assert 35 < max(turns) < 40.1


def test_the_next_file_takes_a_damaged_ones_place(tmp_path):
    fronts = [cutout(tmp_path / "f.png", 90, ellipse(30, 30))]
    backs = [photo(tmp_path / f"b{n}.png", 40, 40, 50 * n) for n in range(3)]
    whole = TrainComposites(fronts, backs, crop=8)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    data = TrainComposites(fronts, [*backs[:2], bad], crop=8, skip_unreadable=True)
    shown = []
    for seed in range(30):
        there, here = (round(255 * drawn(one, 0, seed)[1][5, 0, 0].item()) for one in (whole, data))
        assert here == {0: 0, 50: 50, 100: 0}[there]  # after the last comes the first
        shown.append(there)
    assert set(shown) == {0, 50, 100}
    assert data.skipped() == [bad]
