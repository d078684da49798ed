import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fadeup.metrics import conn, grad, mse, sad
from fadeup.metrics.matting import matting_statistics, unknown_region

cv2 = pytest.importorskip("cv2", reason="Grad and Conn need opencv-python-headless")

GOLDEN = Path(__file__).parent.parent / "golden" / "matting"
with (GOLDEN / "values.csv").open() as file:
    CASES = list(csv.DictReader(file))
METRICS = {"sad": sad, "mse": mse, "grad": grad, "conn": conn}
UNITS = {"sad": 1, "mse": 1, "grad": 1000, "conn": 1000}  # the table of MATLAB's values has the last two raw


def golden_images(case):
    images = []
    for name in ("pred", "alpha", "trimap"):
        with Image.open(GOLDEN / f"{case['case']}_{name}.png") as image:
            images.append(np.array(image))
    return images


def naive_gradient(matte):
    """Two sums over all taps of the unseparated kernels, flipped, on a picture with its border repeated."""
    x = matte - matte.min()
    x = np.pad(x / (x.max() or 1), 4, mode="edge")
    v, u = np.mgrid[-4:5, -4:5]
    horizontal = -u * np.exp(-(u**2 + v**2) / (2 * 1.4**2))
    horizontal /= math.sqrt((horizontal**2).sum())
    out = np.zeros((2, *matte.shape))
    for axis, kernel in enumerate((horizontal, horizontal.T)):
        for i, j in np.ndindex(*matte.shape):
            out[axis, i, j] = (x[i : i + 9, j : j + 9] * kernel[::-1, ::-1]).sum()
    return np.hypot(out[0], out[1])


def naive_components(mask):
    """Sets of 4-connected points, in the order of their first points down the columns."""
    left = {(x, y) for y, x in np.argwhere(mask).tolist()}
    while left:
        component, front = set(), [min(left)]
        while front:
            x, y = front.pop()
            if (x, y) in left:
                left.remove((x, y))
                component.add((x, y))
                front += [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
        yield component


def naive_conn(pred, alpha, unknown):
    """Steps in exact integers: a value reaches i / 10 where 10 value >= 255 i."""
    level = np.full(pred.shape, -1)
    for step in range(1, 11):
        components = list(naive_components((10 * pred >= 255 * step) & (10 * alpha >= 255 * step)))
        if components:
            omega = max(components, key=len)  # the first of equal ones
            for y, x in np.argwhere(level == -1).tolist():
                level[y, x] = -1 if (x, y) in omega else step - 1
    level[level == -1] = 10
    phi = [np.where(20 * x - 510 * level >= 765, 1 - (x / 255 - level / 10), 1) for x in (pred, alpha)]
    return np.abs(phi[0] - phi[1])[unknown].sum()


def naive_statistics(pred, alpha, trimap):
    pred, alpha, unknown = pred.astype(int), alpha.astype(int), trimap == 128
    difference = [abs(int(p) - int(a)) / 255 for p, a in zip(pred[unknown], alpha[unknown], strict=True)]
    return {
        "sad": sum(difference) / 1000,
        "mse": sum(d * d for d in difference) / len(difference),
        "grad": ((naive_gradient(pred / 255) - naive_gradient(alpha / 255)) ** 2)[unknown].sum() / 1000,
        "conn": naive_conn(pred, alpha, unknown) / 1000,
    }


def random_case(seed, height, width, levels):
    """Few grey levels make ties and values on a threshold; smoothing makes components of several pixels."""
    rng = np.random.default_rng(seed)
    palette = rng.choice([0, 25, 26, 51, 102, 128, 153, 204, 229, 230, 255], levels)
    alpha = rng.choice(palette, (height, width)).astype(np.uint8)
    pred = np.where(rng.random(alpha.shape) < 0.6, alpha, rng.choice(palette, alpha.shape)).astype(np.uint8)
    trimap = rng.choice([0, 128, 255], alpha.shape, p=[0.2, 0.6, 0.2]).astype(np.uint8)
    trimap[rng.integers(height), rng.integers(width)] = 128
    return pred, alpha, trimap


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
@pytest.mark.parametrize("name", METRICS)
def test_golden_values_of_the_matlab_code(case, name):
    images = golden_images(case)
    expected = float(case[name]) / UNITS[name]
    assert METRICS[name](*images) == pytest.approx(expected, rel=1e-5)
    assert matting_statistics(*images)[name] == METRICS[name](*images)


@pytest.mark.parametrize("name", METRICS)
def test_other_predictions_have_other_scores(name):
    for case in CASES:
        pred, alpha, trimap = golden_images(case)
        assert METRICS[name](pred[::-1], alpha, trimap) != pytest.approx(METRICS[name](pred, alpha, trimap), rel=1e-3)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_statistics_equal_their_slow_twin(seed, height, width, levels):
    case = random_case(seed, height, width, levels)
    assert matting_statistics(*case) == pytest.approx(naive_statistics(*case), rel=1e-5, abs=1e-9)


@given(st.integers(0, 10**6))
def test_conn_of_large_pictures_equals_its_slow_twin(seed):
    pred, alpha, trimap = random_case(seed, 24, 31, 6)
    expected = naive_conn(pred.astype(int), alpha.astype(int), trimap == 128) / 1000
    assert expected > 0
    assert conn(pred, alpha, trimap) == pytest.approx(expected, rel=1e-5)


def test_tiny_pictures_by_hand():
    pred = np.array([[0, 51, 255]], np.uint8)
    alpha = np.array([[0, 153, 0]], np.uint8)
    trimap = np.array([[0, 128, 128]], np.uint8)
    assert sad(pred, alpha, trimap) == pytest.approx((0.4 + 1) / 1000)
    assert mse(pred, alpha, trimap) == pytest.approx((0.16 + 1) / 2)
    # Only pixel 1 is common, up to 0.2: it stays at level 1, since no higher threshold has a component; others at 0.
    assert conn(pred, alpha, trimap) == pytest.approx(1 / 1000)
    # With a common pixel at every threshold, pixel 1 falls out after 0.2: distances 0 and 0.4.
    pred[0, 0] = alpha[0, 0] = 255
    pred[0, 2] = 0
    assert conn(pred, alpha, trimap) == pytest.approx(0.4 / 1000)


def test_gradient_of_a_step_by_hand():
    alpha = np.zeros((9, 40), np.uint8)
    alpha[:, 20:] = 200
    pred = np.full_like(alpha, 7)
    trimap = np.zeros_like(alpha)
    trimap[4, 20] = 128
    u = np.arange(-4, 5)
    smooth, derive = np.exp(-(u**2) / 3.92), u * np.exp(-(u**2) / 3.92)
    expected = smooth.sum() / np.linalg.norm(smooth) * derive[4:].sum() / np.linalg.norm(derive)
    assert grad(pred, alpha, trimap) == pytest.approx(expected**2 / 1000)
    assert grad(alpha, alpha // 2, trimap) == pytest.approx(0, abs=1e-12)  # both are stretched to 0–1


def test_constant_mattes_have_no_gradient():
    trimap = np.full((5, 6), 128, np.uint8)
    for value in (0, 77, 255):
        assert grad(np.full((5, 6), value, np.uint8), np.full((5, 6), 128, np.uint8), trimap) == 0


def test_of_equal_components_the_first_down_the_columns_is_the_object():
    # Both sides of the dark row and column tie; the lower left begins in column 0, the upper right in row 0.
    alpha = np.array([[0, 0, 255, 255], [0, 0, 0, 0], [255, 255, 0, 0]], np.uint8)
    pred = np.where(alpha == 255, 230, 0).astype(np.uint8)
    lower_left, upper_right = np.zeros_like(alpha), np.zeros_like(alpha)
    lower_left[2, 0] = upper_right[0, 2] = 128
    # The object stays connected to 0.9, so l = 0.9 and 1 - 0.9 < 0.15; the other has l = 0: 1 - 230 / 255.
    assert conn(pred, alpha, lower_left) == pytest.approx(0)
    assert conn(pred, alpha, upper_right) == pytest.approx(25 / 255 / 1000)
    # Of two in one column the upper is first.
    alpha = np.array([[0, 255, 255, 0, 255, 255]], np.uint8).T
    pred = np.where(alpha == 255, 230, 0).astype(np.uint8)
    upper, lower = np.zeros_like(alpha), np.zeros_like(alpha)
    upper[1] = lower[4] = 128
    assert conn(pred, alpha, upper) == pytest.approx(0)
    assert conn(pred, alpha, lower) == pytest.approx(25 / 255 / 1000)


def test_components_are_4_connected():
    alpha = np.array([[255, 255, 0], [0, 0, 255]], np.uint8)
    pred = np.where(alpha == 255, 204, 0).astype(np.uint8)
    trimap = np.array([[0, 0, 0], [0, 0, 128]], np.uint8)
    assert conn(pred, alpha, trimap) == pytest.approx(51 / 255 / 1000)


@pytest.mark.parametrize("step", range(1, 11))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tenths_reach_their_threshold(step, dtype):
    # 3 * 0.1 exceeds 0.3, and float32's 0.7 is below float64's: the pixel must reach step / 10 all the same.
    pred = np.array([[step / 10, 1]], dtype)
    alpha = np.ones((1, 2), dtype)
    trimap = np.array([[128, 0]], np.uint8)
    distance = 1 - step / 10
    assert conn(pred, alpha, trimap) == pytest.approx((distance if distance >= 0.15 else 0) / 1000, abs=1e-9)


def test_known_pixels_count_only_through_the_rest_of_the_picture():
    pred, alpha, trimap = golden_images(CASES[0])
    other = np.where(trimap == 128, pred, pred // 2 + 3).astype(np.uint8)
    assert sad(other, alpha, trimap) == sad(pred, alpha, trimap)
    assert mse(other, alpha, trimap) == mse(pred, alpha, trimap)
    assert grad(other, alpha, trimap) != grad(pred, alpha, trimap)  # the filter's window, and the stretching
    assert conn(other, alpha, trimap) != conn(pred, alpha, trimap)  # components


@pytest.mark.parametrize("dtype", [np.float32, np.float64, torch.uint8, torch.float32, torch.float64])
def test_arrays_and_tensors_of_all_dtypes_agree(dtype):
    images = golden_images(CASES[3])
    expected = matting_statistics(*images)
    if isinstance(dtype, torch.dtype):
        divided = [torch.from_numpy(x) if dtype == torch.uint8 else torch.from_numpy(x).to(dtype) / 255 for x in images]
        divided[0] = divided[0].requires_grad_(dtype != torch.uint8)
    else:
        divided = [x.astype(dtype) / dtype(255) for x in images]
    assert matting_statistics(*divided) == pytest.approx(expected, rel=1e-5)
    assert matting_statistics(divided[0], *images[1:]) == pytest.approx(expected, rel=1e-5)


def test_half_precision_is_read_and_nothing_is_quantised():
    alpha = torch.full((2, 2), 0.5, dtype=torch.bfloat16)
    trimap = torch.full((2, 2), 0.5, dtype=torch.float16)
    assert sad(alpha + 0.25, alpha, trimap) == 4 * 0.25 / 1000
    pred = np.full((2, 2), 0.5 + 1e-6)
    assert sad(pred, alpha, trimap) == pytest.approx(4e-9)


def test_inputs_are_left_as_they_are():
    images = [x.astype(np.float64) / 255 for x in golden_images(CASES[3])]
    copies = [x.copy() for x in images]
    matting_statistics(*images)
    for image, copy in zip(images, copies, strict=True):
        assert (image == copy).all()


def test_views_are_scored_like_copies():
    images = [x[::2, ::-3] for x in golden_images(CASES[0])]
    assert matting_statistics(*images) == matting_statistics(*(x.copy() for x in images))


def test_trimap_thresholds():
    values = np.array([[0, 63, 64, 127, 128, 129, 191, 192, 255]], np.uint8)
    expected = [[False, False, True, True, True, True, True, False, False]]
    assert unknown_region(values).tolist() == expected
    assert unknown_region(torch.from_numpy(values)).tolist() == expected
    assert unknown_region(values.astype(np.float32) / np.float32(255)).tolist() == expected
    assert unknown_region(np.array([[0, 0.5, 1]])).tolist() == [[False, True, False]]


IMAGE = np.full((3, 4), 128, np.uint8)


@pytest.mark.parametrize("metric", [*METRICS.values(), matting_statistics])
def test_sizes_must_agree(metric):
    with pytest.raises(ValueError, match=r"pred must be \(3, 4\) like alpha, got \(4, 3\)"):
        metric(IMAGE.T, IMAGE, IMAGE)
    with pytest.raises(ValueError, match=r"trimap must be \(3, 4\) like alpha, got \(1, 12\)"):
        metric(IMAGE, IMAGE, IMAGE.reshape(1, 12))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([[0, 1]], "must be a NumPy array or a tensor, got list"),
        (np.zeros((3, 4, 1), np.uint8), r"must be \(H, W\) without empty sides, got \(3, 4, 1\); take one picture"),
        (np.zeros((0, 4), np.uint8), r"must be \(H, W\) without empty sides, got \(0, 4\)"),
        (IMAGE.astype(np.int64), "must be uint8 of 0 to 255 or floats of 0 to 1, got int64; convert it"),
        (IMAGE > 0, "must be uint8 of 0 to 255 or floats of 0 to 1, got bool"),
        (IMAGE.astype(np.float32), "must be in 0 to 1 where of floats, got 128; clip it, or divide"),
        (np.full((3, 4), -0.25), "must be in 0 to 1 where of floats, got -0.25"),
        (np.where(IMAGE > 0, np.nan, 0), "must be in 0 to 1 where of floats, got nan"),
        (torch.full((3, 4), float("inf")), "must be in 0 to 1 where of floats, got inf"),
    ],
    ids=["list", "channels", "empty", "int64", "bool", "255 in floats", "negative", "nan", "inf"],
)
@pytest.mark.parametrize("name", ["pred", "alpha", "trimap"])
def test_bad_images_are_named(name, image, message):
    arguments = {"pred": IMAGE, "alpha": IMAGE, "trimap": IMAGE, name: image}
    with pytest.raises(ValueError, match=f"{name} {message}"):
        matting_statistics(**arguments)


def test_a_trimap_without_unknown_pixels_is_refused():
    for trimap in (np.zeros((3, 4), np.uint8), np.array([[0, 1, 2, 2]] * 3, np.uint8)):
        with pytest.raises(ValueError, match=rf"unknown pixels, 64 to 191 .* none among 0 to {trimap.max()}; "):
            matting_statistics(IMAGE, IMAGE, trimap)
    with pytest.raises(ValueError, match=r"got none among 255 to 255; mark the region .* with 0\.5 in one of floats"):
        unknown_region(np.ones((3, 4)))


def test_without_opencv_two_scores_remain(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    pred = np.arange(12, dtype=np.uint8).reshape(3, 4) + 100
    assert sad(pred, IMAGE, IMAGE) > 0
    assert mse(pred, IMAGE, IMAGE) > 0
    for metric in (grad, conn):
        with pytest.raises(ModuleNotFoundError, match=r"cv2 must be installed for Grad and Conn, got .*; pip"):
            metric(pred, IMAGE, IMAGE)
