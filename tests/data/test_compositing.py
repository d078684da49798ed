import pickle

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch.utils.data import DataLoader

from fadeup.data import compositing
from fadeup.data.compositing import TrainComposites, affine, anywhere, jittered, over
from fadeup.data.loading import Augmented, Batches
from fadeup.data.matting import Foreground

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)


def cutout(path, height, width, color=None):
    """A soft ellipse, its colours all of one kind where one is given."""
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None] - 0.5
    alpha = (255 * ((0.4 - np.hypot(y, x)) * 12).clip(0, 1)).astype(np.uint8)
    alpha[height // 2, width // 2], alpha[0, 0] = 255, 0
    colors = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if color is not None:
        colors[:] = color
    Image.fromarray(np.dstack((colors, alpha))).save(path)
    return Foreground(path.stem, path)


def plain(path, value, size=(90, 70)):
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


@pytest.fixture
def ingredients(tmp_path):
    sizes = [(61, 75), (48, 33), (120, 90), (40, 40)]
    foregrounds = [cutout(tmp_path / f"f{n}.png", *size) for n, size in enumerate(sizes)]
    return foregrounds, [plain(tmp_path / f"b{n}.png", 20 * n) for n in range(5)]


def composites(ingredients, **options):
    settings = {"crop": 32, "largest_kernel": 7, "enlarged": 80, "mean": MEAN, "std": STD}
    return TrainComposites(*ingredients, **settings | options)


def batches(data, workers, steps=4):
    loader = DataLoader(
        Augmented(data, lambda sample: sample, seed=3), num_workers=workers, batch_sampler=Batches(5, 3, 3, steps)
    )
    return [torch.cat((inputs, target), 1) for inputs, target in loader]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than a small machine has cores
@pytest.mark.parametrize("adapted", [False, True])
def test_batches_do_not_depend_on_the_number_of_workers(ingredients, adapted):
    alone = batches(composites(ingredients, length=5, adapted=adapted), 0)
    assert [len(batch) for batch in alone] == [3, 2, 3, 2]
    for workers in (1, 3):
        for one, other in zip(alone, batches(composites(ingredients, length=5, adapted=adapted), workers), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(torch.cat(alone[:2]).sum((1, 2, 3)).sort()[0], torch.cat(alone[2:]).sum((1, 2, 3)).sort()[0])


def test_samples_do_not_depend_on_opencvs_threads(ingredients):
    threads = cv2.getNumThreads()
    results = []
    try:
        for count in (1, 4):
            cv2.setNumThreads(count)
            torch.manual_seed(2)
            results.append([composites(ingredients, crop=64, adapted=True)[n] for n in range(5)])
    finally:
        cv2.setNumThreads(threads)
    for one, other in zip(*results, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("crop", [17, 32, 100])
def test_sample_is_the_composition_of_its_target(ingredients, adapted, crop):
    data = composites(ingredients, crop=crop, adapted=adapted, length=12)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for inputs, target in (data[n] for n in range(len(data))):
        assert (inputs.shape, target.shape) == ((4, crop, crop), (8, crop, crop))
        assert (inputs.dtype, target.dtype) == (torch.float32, torch.float32)
        assert inputs.is_contiguous()
        alpha, unknown, front, behind = target.split((1, 1, 3, 3))
        assert torch.equal(inputs[:3], (alpha * front + (1 - alpha) * behind - mean) / std)
        assert target.min() >= 0
        assert target.max() <= 1
        assert torch.equal(unknown[0] == 1, inputs[3] == torch.tensor(128 / 255))
        assert set(unknown.unique().tolist()) <= {0, 1}
        assert set(inputs[3].unique().tolist()) <= set(torch.tensor([0, 128 / 255, 1]).tolist())
        assert (unknown[(alpha > 0) & (alpha < 1)] == 1).all()
        assert (alpha[0][inputs[3] == 1] == 1).all()
        assert (alpha[0][inputs[3] == 0] == 0).all()


def test_crops_lie_around_unknown_pixels(ingredients):
    data = composites(([ingredients[0][2]], ingredients[1]), crop=21, length=20, adapted=True)
    assert all(target[1, 10, 10] == 1 for _, target in (data[n] for n in range(20)))


@pytest.mark.parametrize("size", [(1, 2), (3, 2), (7, 301), (400, 3), (33, 32), (32, 33), (700, 500)])
@pytest.mark.parametrize("held", [(1, 1), (50, 3), (900, 800)])
@pytest.mark.parametrize("adapted", [False, True])
def test_foregrounds_and_backgrounds_of_any_sizes(tmp_path, size, held, adapted):
    made = [cutout(tmp_path / "f.png", *size), cutout(tmp_path / "g.png", 20, 30)]
    data = composites((made, [plain(tmp_path / "b.png", 50, held)]), adapted=adapted, length=6)
    for inputs, target in (data[n] for n in range(6)):
        assert inputs.shape == (4, 32, 32)
        assert inputs.isfinite().all()
        assert torch.allclose(target[5:], torch.tensor(50 / 255))


def test_slender_foreground_needs_no_gigabytes(tmp_path):
    made = [cutout(tmp_path / "f.png", 2, 4000)], [plain(tmp_path / "b.png", 50)]
    assert composites(made, crop=512, length=1)[0][0].shape == (4, 512, 512)


def test_order_of_foregrounds_and_how_often_there_are_two(tmp_path, ingredients):
    shades, bars = (30, 130, 230), []
    for n, shade in enumerate(shades):
        rgba = np.full((42, 42, 4), shade, np.uint8)
        rgba[..., 3] = 0
        rgba[:, 14 * n : 14 * (n + 1), 3] = 255
        bars.append(Foreground(f"bar{n}", tmp_path / f"bar{n}.png"))
        Image.fromarray(rgba).save(bars[-1].color)
    data = composites((bars, ingredients[1]), length=90, crop=40, enlarged=42)
    backgrounds, alone = set(), 0
    for index in range(90):
        _, target = data[index]
        backgrounds.add(round(255 * target[5, 0, 0].item()))
        front = 255 * target[2:5, target[0] == 1]
        near = (front - shades[index % 3]).abs().amax(0) < 49  # jitter: 0.11 of value and saturation at most
        assert near.any()
        alone += int(near.all())
    assert backgrounds == {0, 20, 40, 60, 80}  # the last one too
    assert 30 <= alone <= 60


@pytest.fixture
def calls(monkeypatch):
    """What the steps of the pipeline are called with, by name."""
    seen = {"affine": [], "trimap_from_alpha": [], "resized_cutout": [], "resize": []}

    def spied(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (seen[name].append((a, k)), original(*a, **k))[1])

    for name in ("affine", "trimap_from_alpha", "resized_cutout"):
        spied(compositing, name)
    spied(cv2, "resize")
    return seen


@pytest.mark.parametrize(("adapted", "rotated"), [(False, False), (False, True), (True, True)])
def test_what_the_steps_draw(tmp_path, calls, adapted, rotated):
    made = [cutout(tmp_path / "f.png", 60, 50)], [plain(tmp_path / "b.png", 9)]
    data = composites(made, adapted=adapted, rotate_from=55 if rotated else 100, length=200, largest_kernel=5)
    for n in range(200):
        data[n]
    angles, scales, shears = (np.array([a[n] for a, _ in calls["affine"]]) for n in (1, 2, 3))
    assert (np.abs(angles).max() > 25) == rotated
    assert np.abs(angles).max() <= 30
    assert np.abs(shears).max() <= 10
    assert np.abs(shears).max() > 9
    assert 0.8 <= np.abs(scales).min() < 0.85
    assert 1.2 < np.abs(scales).max() <= 1.25
    assert (np.abs((scales < 0).mean(0) - 0.5) < 0.1).all()
    kernels = np.array([a[1:] for a, _ in calls["trimap_from_alpha"]])
    assert set(map(tuple, kernels.tolist())) == {(m, n) for m in range(1, 6) for n in range(1, 6)}
    enlarged = sum(a[1:] == ((80, 80),) and a[0].ndim == 2 for a, _ in calls["resize"])
    assert enlarged == 0 if adapted else 35 < enlarged < 65


def test_half_of_the_samples_are_flipped(tmp_path, monkeypatch):
    rgba = np.full((40, 40, 4), 255, np.uint8)
    rgba[:, :20, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "f.png")
    monkeypatch.setattr(compositing, "affine", lambda *_: np.eye(2, 3))
    data = composites(([Foreground("f", tmp_path / "f.png")], [plain(tmp_path / "b.png", 9)]), adapted=True, crop=38)
    flipped = [bool(data[0][1][0, 20, 1] == 1) for _ in range(100)]
    assert 35 < sum(flipped) < 65


@pytest.mark.parametrize(("height", "width", "cut"), [(22, 22, 20), (33, 11, 10), (32, 60, 29), (1, 9, 1)])
def test_smaller_foregrounds_are_enlarged_from_a_crop_of_their_short_side(tmp_path, calls, height, width, cut):
    made = [cutout(tmp_path / "f.png", height, width)], [plain(tmp_path / "b.png", 9)]
    composites(made, adapted=True)[0]
    assert [(a[0].shape, a[1].shape, a[2]) for a, _ in calls["resized_cutout"]] == [
        ((cut, cut, 3), (cut, cut), (32, 32))
    ]


def test_published_rule_shows_the_top_left_of_large_backgrounds(tmp_path, ingredients):
    y, x = np.mgrid[:300, :300]
    large = tmp_path / "large.png"
    Image.fromarray(np.stack((y // 2, x // 2, 0 * x), 2).astype(np.uint8)).save(large)
    corner = composites((ingredients[0], [large]), length=20, enlarged=100)
    assert max(255 * corner[n][1][5:7].max().item() for n in range(20)) < 61
    adapted = composites((ingredients[0], [large]), length=20, adapted=True)
    assert max(255 * adapted[n][1][5:7].max().item() for n in range(20)) > 100


def test_defaults_and_length(ingredients):
    data = TrainComposites(*ingredients)
    assert len(data) == 5
    inputs, _ = data[-1]
    assert inputs.shape == (4, 512, 512)
    assert inputs[:3].min() >= 0
    with pytest.raises(IndexError):
        data[5]


def test_cache_changes_nothing_and_is_not_sent_to_workers(ingredients):
    plainly, kept = composites(ingredients), composites(ingredients, cache=True)
    for seed in range(3):
        for n in range(4):
            samples = []
            for data in (plainly, kept):
                torch.manual_seed(seed)
                samples.append(data[n])
            assert all(map(torch.equal, *samples))
    assert kept._kept
    assert not plainly._kept
    assert not pickle.loads(pickle.dumps(kept))._kept


# Parts

COLORS = arrays(np.uint8, (4, 5, 3))
ALPHAS = arrays(np.uint8, (4, 5))


@given(COLORS, ALPHAS, COLORS, ALPHAS)
def test_one_cut_out_over_another(color, alpha, other, other_alpha):
    first, second = alpha / 255, other_alpha / 255
    mixed, matte = over(color, alpha, other, other_alpha)
    together = 1 - (1 - first) * (1 - second)
    if (np.rint(255 * together) == 255).all():
        together = first
    assert np.abs(matte / 255 - together).max() <= 0.501 / 255
    # On any background it looks as the one on the other on it, but for the rounding of alpha and colours.
    behind = np.full_like(color, 77).astype(float)
    one = second[..., None] * other + (1 - second[..., None]) * behind
    both = first[..., None] * color + (1 - first[..., None]) * one
    if (matte != alpha).any():
        seen = matte[..., None] / 255 * mixed + (1 - matte[..., None] / 255) * behind
        assert np.abs(seen - both).max() <= 1.01


def test_two_cut_outs_that_leave_nothing_open_stay_one():
    color, full = np.full((2, 2, 3), 9, np.uint8), np.full((2, 2), 255, np.uint8)
    half = np.full((2, 2), 100, np.uint8)
    mixed, matte = over(color, half, color + 1, full)
    assert (mixed == color).all()
    assert (matte == half).all()


def test_affine_map_keeps_the_centre_and_has_its_parts():
    assert np.allclose(affine((4, 6), 0, np.ones(2), np.zeros(2)), [[1, 0, 0], [0, 1, 0]])
    flipped = affine((4, 6), 0, np.array([-1.0, 1.0]), np.zeros(2))
    assert np.allclose(flipped @ [0, 1, 1], [5, 1])
    turned = affine((5, 5), 30, np.array([1.25, 0.8]), np.array([10, -10]))
    assert np.allclose(turned @ [2, 2, 1], [2, 2])
    assert np.allclose(np.linalg.det(turned[:, :2]), 1 + np.tan(np.radians(10)) ** 2)


@given(st.integers(0, 1000), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_any_part_of_a_background_has_the_size(seed, size):
    background = np.zeros((30, 50, 3), np.uint8)
    background[:] = 200
    part = anywhere(background, size, np.random.default_rng(seed))
    assert part.shape == (*size, 3)
    assert (part == 200).all()


@given(st.integers(0, 1000))
def test_jitter_stays_in_range_and_within_its_reach(seed):
    rng = np.random.default_rng(seed)
    color = rng.random((6, 5, 3), dtype=np.float32)
    changed = jittered(color, np.ones((6, 5), bool), rng)
    assert changed.shape == color.shape
    assert changed.dtype == np.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    before, after = (cv2.cvtColor(x, cv2.COLOR_RGB2HSV) for x in (color, changed))
    reach = (1.1 - before[..., 2].mean()) / 10
    assert np.abs(after[..., 2] - before[..., 2]).max() <= reach + 1e-3
    turn = np.abs(after[..., 0] - before[..., 0])
    vivid = (before[..., 1] > 0.3) & (before[..., 2] > 0.3)
    assert np.minimum(turn, 360 - turn)[vivid].max(initial=0) <= 40.5


def test_jitter_reflects_at_the_brightest():
    color = np.full((1, 2, 3), 0.5, np.float32)
    color[0, 1] = 1
    seen = np.array([[True, False]])
    for seed in range(20):
        middle, brightest = jittered(color, seen, np.random.default_rng(seed)).max(2)[0]
        assert brightest == pytest.approx(1 - abs(middle - 0.5), abs=1e-5)
        assert brightest < 1


def test_jitter_of_what_nobody_sees_and_of_grey():
    grey = np.full((3, 3, 3), 0.5, np.float32)
    changed = jittered(grey, np.zeros((3, 3), bool), np.random.default_rng(0))
    assert changed.shape == (3, 3, 3)
    assert np.isfinite(changed).all()


# Errors


@pytest.mark.parametrize("name", ["foregrounds", "backgrounds"])
def test_no_pictures(ingredients, name):
    given = dict(zip(("foregrounds", "backgrounds"), ingredients, strict=True)) | {name: []}
    with pytest.raises(ValueError, match=rf"{name} must be a picture or more, got none; is the folder empty\?"):
        TrainComposites(**given)


@pytest.mark.parametrize("name", ["length", "crop", "largest_kernel", "enlarged"])
def test_sizes_below_1(ingredients, name):
    with pytest.raises(ValueError, match=rf"{name} must be 1 or more, got 0"):
        composites(ingredients, **{name: 0})


def damage(path):
    path.write_bytes(path.read_bytes()[:50])


def test_damaged_picture_is_named(ingredients):
    damage(ingredients[0][1].color)
    data = composites(ingredients, length=4)
    with pytest.raises(
        ValueError, match=r"f1\.png must be a whole picture, got 50 bytes .*; mend or remove it, or set"
    ):
        data[1]


def test_damaged_picture_in_a_worker_is_named(ingredients):
    for path in ingredients[1]:
        damage(path)
    with pytest.raises(ValueError, match=r"b\d\.png must be a whole picture, got 50 bytes"):
        batches(composites(ingredients), 2)


def test_unreadable_pictures_are_passed_over_and_counted_by_all_workers(ingredients):
    foregrounds, backgrounds = ingredients
    damage(foregrounds[1].color)
    damage(backgrounds[4])
    Image.new("RGB", (9, 9)).save(foregrounds[3].color)  # no alpha
    results = []
    for workers in (0, 2):
        data = composites(ingredients, length=5, skip_unreadable=True)
        assert data.skipped() == []
        results.append(batches(data, workers, steps=12))
        assert data.skipped() == [foregrounds[1].color, foregrounds[3].color, backgrounds[4]]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_missing_file_is_passed_over_too(ingredients):
    ingredients[0][0].color.unlink()
    data = composites(ingredients, skip_unreadable=True)
    assert data[0][0].shape == (4, 32, 32)
    assert data.skipped() == [ingredients[0][0].color]


@pytest.mark.parametrize(("place", "name", "count"), [(0, "foregrounds", 4), (1, "backgrounds", 5)])
def test_nothing_that_can_be_read(ingredients, place, name, count):
    for item in ingredients[place]:
        damage(getattr(item, "color", item))
    data = composites(ingredients, skip_unreadable=True)
    with pytest.raises(ValueError, match=rf"{name} must be a picture or more that can be read, got none of {count}"):
        data[0]
