import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as TF

from fadeup.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TestTransform, TrainTransform, nearest_indices

PLAIN = {"scale": None, "flip": False, "photometric": False, "cat_max_ratio": 1}
RAW = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # leaves 0–255


def sample(height=60, width=80, classes=6, block=10):
    """A label of flat blocks and an image whose colour is its class: red 40 times it, blue 255 less that."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, classes, (-(-height // block), -(-width // block)))
    label = torch.from_numpy(np.kron(coarse, np.ones((block, block)))[:height, :width].astype(np.uint8))
    return torch.stack([40 * label, torch.full_like(label, 7), 255 - 40 * label]), label


def inner(label, reach=2):
    """Pixels no nearer than `reach` to another class or the border: no interpolation changes them."""
    padded = F.pad(label[None, None].float(), (reach,) * 4, value=-1)
    largest = F.max_pool2d(padded, 2 * reach + 1, 1)
    smallest = -F.max_pool2d(-padded, 2 * reach + 1, 1)
    return (largest == smallest)[0, 0]


@pytest.mark.parametrize("options", [{}, {"resize": 100}, {"resize": (90, 180)}, {"crop": 200}, {"cat_max_ratio": 0.3}])
@pytest.mark.parametrize("seed", range(8))
def test_image_and_label_stay_registered(options, seed):
    torch.manual_seed(seed)
    transform = TrainTransform(**{"crop": 48, "flip_vertical": True, "photometric": False} | RAW | options)
    image, target = transform(*sample(120, 160, block=20))
    clear = inner(target) & (target != 255)
    assert clear.sum() > 100
    assert (image[0] - 40 * target)[clear].abs().max() <= 1  # uint8 rounding
    assert (image[2] - (255 - 40 * target))[clear].abs().max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_flat_border_lies_where_the_labels_border_lies(seed):
    torch.manual_seed(seed)
    label = torch.zeros(64, 64, dtype=torch.uint8)
    label[:, 29:] = 1
    image, target = TrainTransform(200, photometric=False, cat_max_ratio=1, **RAW)(255 * label.expand(3, -1, -1), label)
    known = target != 255
    assert ((image[0] > 127) == (target == 1))[known].float().mean() > 0.99  # half a pixel off would be 0.98


def test_same_seed_same_sample_and_global_generator():
    transform = TrainTransform(32, flip_vertical=True)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(transform(*sample()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_types_sizes_and_normalisation():
    image, label = sample()
    got, target = TrainTransform(60, **PLAIN)(image[:, :, :60], label[:, :60])
    assert got.dtype == torch.float32
    assert target.dtype == torch.int64
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(got, (image[:, :, :60] / 255 - mean) / std, atol=1e-6)
    assert torch.equal(target, label[:, :60].long())


def test_padding_is_zero_after_normalisation_and_ignored():
    image, label = sample(20, 90)
    got, target = TrainTransform(64, **PLAIN)(image, label)
    assert got.shape == (3, 64, 64)
    assert (got[:, 20:] == 0).all()
    assert (target[20:] == 255).all()
    assert (target[:20] != 255).all()
    assert (got[:, :20] != 0).any(0).all()


def test_inputs_are_not_written_to():
    image, label = sample()
    before = image.clone(), label.clone()
    for transform in (TrainTransform(32, **RAW), TrainTransform(100, **PLAIN), TestTransform(divisor=1)):
        got, target = transform(image, label)
        got.fill_(-1)
        target.fill_(-1)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (33, 47), (2, 3)])
@pytest.mark.parametrize("resize", [None, 32, (20, 31)])
def test_odd_sizes(size, resize):
    image, label = sample(*size)
    got, target = TrainTransform(24, resize)(image, label)
    assert got.shape == (3, 24, 24)
    assert target.shape == (24, 24)
    assert got.isfinite().all()
    assert (target != 255).any()
    got, target = TestTransform(resize, 32)(image, label)
    assert got.isfinite().all()
    assert all(side % 32 == 0 and side for side in got.shape[1:])
    assert target.shape == size


def test_label_that_is_ignored_throughout():
    image, label = sample()
    _, target = TrainTransform(32)(image, torch.full_like(label, 255))
    assert (target == 255).all()


def test_crop_avoids_a_class_that_fills_it():
    label = torch.zeros(100, 100, dtype=torch.uint8)
    label[:, 90:] = 1
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    shares = {}
    for limit in (0.75, 1.0):
        torch.manual_seed(0)
        transform = TrainTransform(20, **PLAIN | {"cat_max_ratio": limit})
        shares[limit] = np.mean([transform(image, label)[1].any().item() for _ in range(100)])
    assert shares[1.0] < 0.25
    assert shares[0.75] > 2 * shares[1.0]


def test_ignored_pixels_do_not_count_for_the_crop():
    label = torch.full((40, 40), 255, dtype=torch.uint8)
    label[:, 30:] = torch.tensor([0, 1] * 5, dtype=torch.uint8)  # balanced where known
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    transform = TrainTransform(40, **PLAIN | {"cat_max_ratio": 0.75})
    torch.manual_seed(0)
    transform(image, label)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    torch.randint(1, ())
    torch.randint(1, ())
    assert torch.equal(state, torch.get_rng_state())  # the first crop was taken


def test_scale_covers_its_range():
    image, label = sample(64, 64)
    sides = []
    for seed in range(60):
        torch.manual_seed(seed)
        _, target = TrainTransform(200, flip=False, photometric=False)(image, label)
        sides.append((target[:, 0] != 255).sum().item())
    assert 32 <= min(sides) < 40
    assert 118 < max(sides) <= 128


@pytest.mark.parametrize(("option", "axis"), [("flip", 1), ("flip_vertical", 0)])
def test_flips_are_even_odds(option, axis):
    image, label = sample()
    transform = TrainTransform(80, **PLAIN | {option: True})
    flipped = [torch.equal(transform(image, label)[1][:60], label.flip(axis).long()) for _ in range(80)]
    assert 20 < sum(flipped) < 60


def test_colours_change_and_keep_their_channels():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[0] = 200  # red stays red: channels are not shuffled, hue turns by at most a tenth
    label = torch.zeros(16, 16, dtype=torch.uint8)
    transform = TrainTransform(16, **PLAIN | {"photometric": True}, **RAW)
    results = torch.stack([transform(image, label)[0][:, 0, 0] for _ in range(60)])
    assert (results.argmax(1) == 0).all()
    assert len(results.unique(dim=0)) > 20


@given(size=st.integers(1, 200), resized=st.integers(1, 400))
def test_nearest_indices_are_the_pixels_under_the_centres(size, resized):
    got = nearest_indices(size, resized)
    centres = (torch.arange(resized, dtype=torch.float64) + 0.5) * size / resized
    away = (centres - centres.round()).abs() > 1e-9  # at a border between two pixels either is near
    assert torch.equal(got[away], centres.floor().long()[away])
    assert got.min() >= 0
    assert got.max() < size


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        (None, (360, 480), (384, 480)),
        (512, (360, 480), (512, 704)),  # 512 x 682.67
        (512, (480, 360), (704, 512)),
        (512, (100, 2000), (128, 2048)),  # the long side is held at four times 512
        ((500, 700), (360, 480), (512, 704)),
        (None, (1, 1), (32, 32)),
    ],
)
def test_test_sizes_are_rounded_up_to_the_divisor(resize, size, expected):
    image, label = sample(*size)
    got, target = TestTransform(resize)(image, label)
    assert got.shape == (3, *expected)
    assert torch.equal(target, label.long())


def test_test_image_is_resized_once_and_normalised():
    image, label = sample(50, 70)
    got, _ = TestTransform(40, 16, **RAW)(image, label)
    assert torch.allclose(got, TF.resize(image, [48, 64], antialias=True).float(), atol=1e-3)
    assert torch.allclose(TestTransform(None, 1, **RAW)(image, label)[0], image.float(), atol=1e-3)


def test_transforms_can_be_sent_to_workers():
    for transform in (TrainTransform(16), TestTransform()):
        copy = pickle.loads(pickle.dumps(transform))
        torch.manual_seed(0)
        expected = transform(*sample())[0]
        torch.manual_seed(0)
        assert torch.equal(copy(*sample())[0], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 0}, "crop must be at least 1, got 0"),
        ({"resize": 0}, "resize must be None, a short side or .* of at least 1, got 0"),
        ({"resize": (4, 0)}, r"resize must be None, .* got \(4, 0\)"),
        ({"scale": (2, 1)}, r"scale must be None or \(low, high\) with 0 < low <= high, got \(2, 1\)"),
        ({"cat_max_ratio": 0}, "cat_max_ratio must be above 0 and at most 1, got 0"),
        ({"std": (1, 1, 0)}, r"mean and std must be three numbers each, std above 0, got .* and \(1, 1, 0\)"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**{"crop": 8} | arguments)


def test_divisor_out_of_range():
    with pytest.raises(ValueError, match="divisor must be at least 1, got 0"):
        TestTransform(divisor=0)


@pytest.mark.parametrize("transform", [TrainTransform(8), TestTransform()])
def test_samples_that_do_not_fit(transform):
    image, label = sample()
    with pytest.raises(ValueError, match=r"image must be uint8 \(3, H, W\), got torch.float32 \(3, 60, 80\)"):
        transform(image.float(), label)
    with pytest.raises(ValueError, match=r"label must be \(60, 80\) as the image, got \(59, 80\)"):
        transform(image, label[1:])
