"""Memory of one process that predicts thousands of photographs, one after the other.

python scripts/predict_memory.py --photos 5000 --json benchmarks/results/predict-memory.json

Photographs are squares and strips of the tiles that ship, of many sizes. Resident memory is read after each; the first
hundred fill what allocators and libraries keep.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from fadeup.bench import environment
from fadeup.checkpoint import write
from fadeup.predict import default_model, load_segmenter, segment_photos

TILES = Path(__file__).parent.parent / "src/fadeup/assets/landcover"
WARM = 100


def write_photos(folder: Path, count: int) -> list[Path]:
    """Cuts of the tiles of 256 x 256, 48 to 256 pixels high and wide."""
    tiles = [Image.open(path).convert("RGB") for path in sorted(TILES.glob("*.jpg"))]
    rng, photos = np.random.default_rng(0), []
    for index in range(count):
        height, width = rng.integers(48, 257, 2).tolist()
        top, left = rng.integers(0, 257 - height), rng.integers(0, 257 - width)
        photos.append(folder / f"{index:05d}.jpg")
        tiles[index % len(tiles)].crop((left, top, left + width, top + height)).save(photos[-1], quality=90)
    return photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=5000)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    process, memory, failed = psutil.Process(), [], []

    def on_photo(result: object) -> None:
        memory.append(process.memory_info().rss / 2**20)
        failed.extend([result.error] if result.error else [])  # type: ignore[attr-defined]

    segmenter = load_segmenter(default_model("landcover-fade"))
    options = {"transform": segmenter.transform, "palette": segmenter.palette, "classes": segmenter.classes}
    with tempfile.TemporaryDirectory() as work:
        photos = write_photos(Path(work), arguments.photos)
        segment_photos(segmenter.network, photos, Path(work) / "out", **options, on_photo=on_photo)
    warm, later = max(memory[:WARM]), max(memory[WARM:])
    result = {
        "photographs": len(memory),
        "failed": len(failed),
        "mib_of_the_first_hundred": round(warm, 1),
        "mib_afterwards": round(later, 1),
        "growth_percent": round(100 * (later / warm - 1), 2),
        "mib_every_250": [round(value, 1) for value in memory[249::250]],
        "environment": environment(),
    }
    write(arguments.json, json.dumps(result, indent=2).encode() + b"\n")
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}))


if __name__ == "__main__":
    main()
