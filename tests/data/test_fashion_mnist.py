import gzip
import hashlib

import numpy as np
import pytest

from fadeup.data import fashion_mnist as module
from fadeup.data.fashion_mnist import ASSETS, DEBIAN, fashion_mnist, read_idx


def write_idx(path, array, header=None):
    header = header or bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 6), ("t10k", 4)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", rng.integers(0, 10, n, dtype=np.uint8))
    return tmp_path


@pytest.mark.parametrize(("split", "per_class"), [("train", 700), ("test", 100)])
def test_shipped_subset_is_balanced_and_real(split, per_class):
    images, labels = fashion_mnist(split)
    assert images.shape == (10 * per_class, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [per_class] * 10
    assert len({hashlib.sha256(image).digest() for image in images}) == len(images)  # no picture twice
    assert images.mean() == pytest.approx(72.94, abs=1)  # the full set's mean


def test_train_and_test_share_no_picture():
    train, test = ({image.tobytes() for image in fashion_mnist(split)[0]} for split in ("train", "test"))
    assert not train & test


def test_shipped_subset_stays_small():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 4 * 2**20


@pytest.mark.data
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_full_set_has_the_known_statistics_and_starts_with_the_subset():
    images, labels = fashion_mnist("train", "full")
    assert images.shape == (60000, 28, 28)
    assert images.mean() == pytest.approx(72.940, abs=1e-3)
    assert images.std() == pytest.approx(90.021, abs=1e-3)
    assert np.bincount(labels).tolist() == [6000] * 10
    subset = fashion_mnist("train")[0]
    known = {image.tobytes() for image in images}
    assert all(image.tobytes() in known for image in subset)


def test_own_folder(folder):
    images, labels = fashion_mnist("test", folder)
    assert images.shape == (4, 28, 28)
    assert labels.shape == (4,)


def test_unknown_split():
    with pytest.raises(ValueError, match=r"split must be 'train' or 'test', got 'val'"):
        fashion_mnist("val")


def test_missing_file_says_how_to_obtain_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.gz must be in .*dataset-fashion-mnist"):
        fashion_mnist("train", tmp_path)


def test_full_without_package_or_network_says_how_to_obtain_it(tmp_path, monkeypatch):
    import torchvision.datasets

    def refuse(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(module, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"Fashion-MNIST must be in .* got no network; install Debian's package"
    ):
        fashion_mnist("train", "full")


def test_full_without_package_downloads_into_the_cache(tmp_path, monkeypatch, folder):
    import torchvision.datasets

    def download(root, download):
        raw = root / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for path in folder.glob("*.gz"):
            (raw / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(module, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    assert fashion_mnist("train", "full")[0].shape == (6, 28, 28)


def test_truncated_gzip(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz must be a whole gzip file"):
        fashion_mnist("train", folder)


def test_not_gzip(folder):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz must be a whole gzip file"):
        fashion_mnist("train", folder)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08", b"\x00\x00\x0d\x01" + bytes(8), b"PNG.", b"\x00\x00\x08\x03ab"]
)
def test_not_idx(tmp_path, content):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="must be an IDX file of unsigned bytes, got a header of"):
        read_idx(path)


@pytest.mark.parametrize(("extra", "got"), [(-1, "4"), (1, "more")])
def test_content_shorter_or_longer_than_its_header(tmp_path, extra, got):
    header = bytes([0, 0, 8, 1]) + np.array([5], ">u4").tobytes()
    write_idx(tmp_path / "x.gz", np.zeros(5 + extra, np.uint8), header)
    with pytest.raises(ValueError, match=rf"must hold 5 values for its shape \(5,\), got {got}"):
        read_idx(tmp_path / "x.gz")


def test_pictures_of_another_size(folder):
    write_idx(folder / "train-images-idx3-ubyte.gz", np.zeros((6, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"must be 28 x 28, got an array of \(6, 32, 32\)"):
        fashion_mnist("train", folder)


def test_labels_of_another_count(folder):
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match=r"must be one for each of 6 pictures, got \(5,\)"):
        fashion_mnist("train", folder)
