import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fadeup.losses import alpha_loss, composition_loss, laplacian_loss


def random_maps(batch=2, height=5, width=6, dtype=torch.float64):
    """Prediction beyond 0–1 in places, truth, foreground, background and unknown region."""
    generator = torch.Generator().manual_seed(0)

    def draw(channels):
        return torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)

    return 1.2 * draw(1) - 0.1, draw(1), draw(3), draw(3), draw(1) < 0.6


def map_of(*rows):
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def test_alpha_loss_by_hand():
    pred, alpha, unknown = map_of([0.5, 0.75, 1.0]), map_of([0.25, 0.25, 0.0]), map_of([1, 1, 0])
    expected = (math.sqrt(0.0625 + 1e-12) + math.sqrt(0.25 + 1e-12) + 1e-6) / 3
    assert alpha_loss(pred, alpha, unknown).item() == pytest.approx(expected, rel=1e-12)


def test_composition_loss_by_hand():
    pred, alpha, unknown = map_of([0.5, 1.0]), map_of([0.25, 0.0]), map_of([1, 0])
    foreground = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)[:, None, None].expand(1, 3, 1, 2)
    background = torch.tensor([0.0, 0.25, 0.75], dtype=torch.float64)[:, None, None].expand(1, 3, 1, 2)
    distances = (0.25, 0.0625, -0.125)  # 0.25 (foreground - background)
    expected = (sum(math.sqrt(d * d + 1e-12) for d in distances) + 3e-6) / 2
    assert composition_loss(pred, alpha, foreground, background, unknown).item() == pytest.approx(expected, rel=1e-12)


def test_composition_loss_compares_composed_pictures():
    pred, alpha, foreground, background, unknown = random_maps()
    images = [a * foreground + (1 - a) * background for a in (pred, alpha)]
    distance = (((images[0] - images[1]) * unknown) ** 2 + 1e-12).sqrt().sum((1, 2, 3))
    expected = (distance / (unknown.sum((1, 2, 3)) + 1)).mean()
    assert composition_loss(pred, alpha, foreground, background, unknown).item() == pytest.approx(expected.item())


def naive_pyramid(image, levels):
    """Burt and Adelson's pyramid of a list of rows, pixel by pixel."""
    taps = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)

    def at(image, y, x):
        height, width = len(image), len(image[0])
        y, x = abs(y), abs(x)
        return image[y if y < height else 2 * height - 2 - y][x if x < width else 2 * width - 2 - x]

    def blur(image):
        window = [(i, j) for i in range(5) for j in range(5)]
        return [
            [sum(taps[i] * taps[j] * at(image, y + i - 2, x + j - 2) for i, j in window) for x in range(len(image[0]))]
            for y in range(len(image))
        ]

    pyramid = []
    for _ in range(levels - 1):
        small = [row[::2] for row in blur(image)[::2]]
        spread = [[0.0] * len(image[0]) for _ in image]
        for y, row in enumerate(small):
            spread[2 * y][::2] = row
        pyramid.append(
            [[p - 4 * q for p, q in zip(*rows, strict=True)] for rows in zip(image, blur(spread), strict=True)]
        )
        image = small
    return [*pyramid, image]


@pytest.mark.parametrize(("height", "width"), [(9, 12), (11, 9), (10, 10)])
def test_laplacian_loss_equals_its_slow_twin(height, width):
    pred, alpha, *_ = random_maps(1, height, width)
    pyramids = [naive_pyramid(x[0, 0].tolist(), 3) for x in (pred, alpha)]
    levels = [torch.tensor(p) - torch.tensor(q) for p, q in zip(*pyramids, strict=True)]
    expected = sum(2**i * level.abs().mean().item() for i, level in enumerate(levels))
    assert laplacian_loss(pred, alpha, levels=3).item() == pytest.approx(expected, rel=1e-6)


def test_one_level_is_the_mean_absolute_difference():
    pred, alpha, *_ = random_maps()
    assert laplacian_loss(pred, alpha, levels=1).item() == pytest.approx((pred - alpha).abs().mean().item())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6))
def test_laplacian_loss_of_any_size(height, width, levels):
    pred, alpha, *_ = random_maps(2, height, width)
    pred.requires_grad_()
    loss = laplacian_loss(pred, alpha, levels)
    loss.backward()
    assert loss > 0
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 33), (48, 50)])
def test_a_constant_offset_is_in_the_last_level_alone(height, width):
    alpha = random_maps(1, height, width)[1]
    assert laplacian_loss(alpha + 0.25, alpha, 4).item() == pytest.approx(2**3 * 0.25)


def test_wide_errors_weigh_more_than_fine_ones():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    fine, wide = ((-1.0) ** (x + y), (-1.0) ** ((x // 16) + (y // 16)))
    zero = torch.zeros(1, 1, 64, 64)
    assert laplacian_loss(wide[None, None], zero) > 5 * laplacian_loss(fine[None, None], zero)


def all_losses(pred, alpha, foreground, background, unknown):
    return [
        alpha_loss(pred, alpha, unknown),
        composition_loss(pred, alpha, foreground, background, unknown),
        laplacian_loss(pred, alpha, 3),
    ]


def test_equal_mattes_have_no_loss():
    _, alpha, *others = random_maps()
    alpha.requires_grad_()
    losses = all_losses(alpha, alpha.detach(), *others)
    assert losses[0] < 4e-6  # 1e-6 a pixel, over those of the unknown region
    assert losses[1] < 1.2e-5
    assert losses[2] == 0
    torch.stack(losses).sum().backward()
    assert alpha.grad is not None
    assert (alpha.grad == 0).all()  # and no NaN of a root at 0


def test_known_pixels_pull_nothing():
    pred, alpha, foreground, background, unknown = random_maps()
    pred.requires_grad_()
    for loss in all_losses(pred, alpha, foreground, background, unknown)[:2]:
        (gradient,) = torch.autograd.grad(loss, pred)
        assert (gradient[~unknown] == 0).all()
        assert (gradient[unknown] != 0).all()
    nothing = torch.zeros_like(unknown)
    assert alpha_loss(pred, alpha, nothing).item() == pytest.approx(30 * 1e-6)
    assert composition_loss(pred, alpha, foreground, background, nothing).item() == pytest.approx(90 * 1e-6)


def test_pictures_of_a_batch_are_averaged():
    maps = random_maps(3)
    whole = all_losses(*maps)
    alone = zip(*(all_losses(*(x[i : i + 1] for x in maps)) for i in range(3)), strict=True)
    for loss, parts in zip(whole, alone, strict=True):
        assert loss.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-12)


def test_gradients():
    pred, *others = random_maps(2, 4, 5)
    for index in range(3):
        assert torch.autograd.gradcheck(lambda x, i=index: all_losses(x, *others)[i], pred.clone().requires_grad_())


def test_bool_and_float_regions_agree():
    pred, alpha, foreground, background, unknown = random_maps()
    for dtype in (torch.float32, torch.float64):
        floats = all_losses(pred, alpha, foreground, background, unknown.to(dtype))
        assert floats == all_losses(pred, alpha, foreground, background, unknown)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_added_up_in_float32(dtype):
    pred, alpha, foreground, background, unknown = random_maps(1, 128, 128, torch.float32)
    pred = pred.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        losses = all_losses(pred, alpha, foreground, background, unknown)
    expected = all_losses(pred.double(), alpha, foreground, background, unknown)
    for loss, exact in zip(losses, expected, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    equal = alpha_loss(pred, pred.detach(), unknown)
    (gradient,) = torch.autograd.grad(equal, pred)
    assert (gradient == 0).all()


def test_shapes_and_dtypes_are_checked():
    pred, alpha, foreground, background, unknown = random_maps()
    with pytest.raises(ValueError, match=r"pred must be of shape \(batch, channels, height, width\), got \(5, 6\)"):
        alpha_loss(pred[0, 0], alpha, unknown)
    with pytest.raises(ValueError, match="pred must be of 1 channels, got 3"):
        laplacian_loss(foreground, alpha)
    with pytest.raises(ValueError, match=r"alpha must be \(2, 1, 5, 6\) like pred, got \(2, 1, 5, 5\)"):
        laplacian_loss(pred, alpha[..., :5])
    with pytest.raises(ValueError, match=r"foreground must be \(2, 3, 5, 6\) like pred, got \(2, 1, 5, 6\)"):
        composition_loss(pred, alpha, alpha, background, unknown)
    with pytest.raises(ValueError, match=r"background must be \(2, 3, 5, 6\) like pred, got \(1, 3, 5, 6\)"):
        composition_loss(pred, alpha, foreground, background[:1], unknown)
    with pytest.raises(ValueError, match=r"unknown must be \(2, 1, 5, 6\) like pred, got \(2, 1, 6, 5\)"):
        alpha_loss(pred, alpha, unknown.mT)
    with pytest.raises(ValueError, match=r"unknown must be float16.* got torch\.uint8"):
        alpha_loss(pred, alpha, unknown.to(torch.uint8))
    with pytest.raises(ValueError, match="levels must be a whole number, 1 or more, got 0"):
        laplacian_loss(pred, alpha, 0)
