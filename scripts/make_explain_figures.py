"""The figures of docs/explain.md, from the networks and pictures that ship.

    OMP_NUM_THREADS=1 python scripts/make_explain_figures.py [RUN RUN]

With two run folders that kept snapshots also the strip over training.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from fadeup.checkpoint import write
from fadeup.data.landcover import PALETTE, landcover
from fadeup.predict import load_segmenter, segment_photo
from fadeup.report import figure_bytes
from fadeup.visualize import (
    boundary_errors,
    figure_gates,
    figure_kernels,
    figure_panels,
    figure_snapshots,
    gif_snapshots,
    read_snapshots,
    watch,
)

IMAGES = Path(__file__).parents[1] / "docs/images"
TILE, POINT, STAGE = 0, (0.25, 0.4), 2


def keep(name: str, figure: Figure) -> None:
    write(IMAGES / f"explain-{name}.png", figure_bytes(figure))


def main(runs: list[str]) -> None:
    segmenter = load_segmenter("landcover-fade")
    photo, truth = landcover("test")[TILE]
    shown = photo.movedim(0, 2).numpy()
    steps = watch(segmenter.network, segmenter.transform(photo)[None])
    keep("gates", figure_gates(steps, shown))
    keep("kernels", figure_kernels(steps[STAGE], POINT, shown))
    panels = {"photograph": shown, "truth": PALETTE[truth]}
    for name in ("bilinear", "carafe", "fade"):
        model = load_segmenter(f"landcover-{name}")
        labels = segment_photo(model.network, photo, model.transform)
        panels[name] = boundary_errors(labels, truth, ratio=0.004)
    keep("panels", figure_panels(panels))
    if runs:
        kept = {Path(run).name.split("-")[1]: read_snapshots(Path(run)) for run in runs}
        keep("features", figure_snapshots(kept, "feature"))
        keep("gradients", figure_snapshots(kept, "gradient"))
        write(IMAGES / "explain-features.gif", gif_snapshots(kept, "feature"))


if __name__ == "__main__":
    main(sys.argv[1:])
