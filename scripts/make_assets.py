"""Makes src/fadeup/assets/fashion-mnist from the full data set: the first pictures of each class, in their order."""

import gzip
from pathlib import Path

import numpy as np

from fadeup.data.fashion_mnist import ASSETS, PREFIXES, fashion_mnist

PER_CLASS = {"train": 700, "test": 100}


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), 9, mtime=0))


for split, prefix in PREFIXES.items():
    images, labels = fashion_mnist(split, "full")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[: PER_CLASS[split]] for c in range(10)]))
    write_idx(ASSETS / f"{prefix}-images-idx3-ubyte.gz", images[chosen])
    write_idx(ASSETS / f"{prefix}-labels-idx1-ubyte.gz", labels[chosen])
