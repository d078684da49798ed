import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fadeup.data.fashion_mnist import fashion_mnist
from fadeup.metrics import mae, psnr, rmse, ssim


@pytest.fixture(scope="module")
def pair():
    target = torch.from_numpy(fashion_mnist("test")[0][:8].copy())[:, None].float() / 255
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return (target + 0.1 * noise).clamp(0, 1), target


def test_tiny_arrays_by_hand():
    target = torch.zeros(1, 1, 1, 4)
    pred = torch.tensor([0.0, 0.2, 0.4, 0.6]).reshape(1, 1, 1, 4)
    assert mae(pred, target).item() == pytest.approx(0.3)
    assert rmse(pred, target).item() == pytest.approx(math.sqrt(0.14))
    assert psnr(pred, target).item() == pytest.approx(-10 * math.log10(0.14))


def test_psnr_equals_its_twin(pair):
    pred, target = pair
    for value, p, t in zip(psnr(pred, target), pred.numpy(), target.numpy(), strict=True):
        assert value.item() == pytest.approx(peak_signal_noise_ratio(t, p, data_range=1.0), rel=1e-5)


def test_ssim_equals_its_twin(pair):
    pred, target = (x.double() for x in pair)
    for value, p, t in zip(ssim(pred, target), pred.numpy(), target.numpy(), strict=True):
        arguments = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        assert value.item() == pytest.approx(structural_similarity(t[0], p[0], **arguments), abs=1e-9)


def test_one_value_per_image_that_does_not_depend_on_the_batch(pair):
    for metric in (mae, rmse, psnr, ssim):
        values = metric(*pair)
        assert values.shape == (8,)
        assert torch.allclose(metric(pair[0][3:4], pair[1][3:4]), values[3:4], rtol=1e-5)


def test_equal_images_are_perfect(pair):
    target = pair[1]
    assert mae(target, target).eq(0).all()
    assert rmse(target, target).eq(0).all()
    assert psnr(target, target).isposinf().all()
    assert torch.allclose(ssim(target, target), torch.ones(8))


def test_the_paper_s_mse_column_is_an_rmse():
    for db, column in ((24.35, 0.0643), (32.25, 0.0257), (33.83, 0.0218)):  # FADE, Table 1
        root = 10 ** (-db / 20)
        assert abs(root - column) < 0.1 * column
        assert abs(root**2 - column) > 0.9 * column


@given(st.floats(0, 1), st.floats(0, 1))
def test_constant_images(a, b):
    pred, target = torch.full((1, 1, 12, 12), a), torch.full((1, 1, 12, 12), b)
    assert mae(pred, target).item() == pytest.approx(abs(a - b), abs=1e-6)
    assert rmse(pred, target).item() == pytest.approx(abs(a - b), abs=1e-6)


@pytest.mark.parametrize("metric", [mae, rmse, psnr, ssim])
def test_shapes_must_agree(metric):
    with pytest.raises(ValueError, match=r"pred must be \(1, 1, 12, 12\) like target, got \(1, 1, 12, 13\)"):
        metric(torch.zeros(1, 1, 12, 13), torch.zeros(1, 1, 12, 12))


def test_ssim_needs_its_window():
    with pytest.raises(ValueError, match="pred must be at least 11 x 11"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
