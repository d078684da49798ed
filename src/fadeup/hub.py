"""Trained networks for others: a folder, or a repository of the Hugging Face hub, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fadeup.models.pretrained import Pretrained
from fadeup.models.weights import needed
from fadeup.predict.provenance import provenance
from fadeup.predict.trained import ASSETS, load_trained, shipped, weights_file
from fadeup.reading import read_json


def share(
    model: str | Path,
    folder: str | Path,
    *,
    push: str | None = None,
    license: str | None = None,
    **options: Any,
) -> str | None:
    """Write a trained network as a folder with a model card that tells its recipe, scores and data, and upload it.

    The folder is whole: a frozen trunk that the file leaves out, as some that ship with the package do, is put in.
    `SegFormer.from_pretrained(folder)`, or its class's, loads it, and `fadeup predict` and `eval` take it as a model.

    Args:
        model: Name of a network that ships with the package, run folder, `model.safetensors`, or such a folder.
        folder: New or empty, or that of an earlier call.
        push: `"user/name"` on the Hugging Face hub; None for no upload.
        license: Of the weights, an identifier of the hub's; by default `"apache-2.0"` where data and trunk leave the
            choice, else `"unknown"`.
        **options: Of the upload: `private`, `token`, `commit_message`, …

    Returns:
        Where it was uploaded; None where it was not.

    Raises:
        FileNotFoundError: There is no such model, its training is not finished, or a trunk's weights are missing.
        ValueError: The model is of another kind, or the folder holds something else.
        ModuleNotFoundError: huggingface_hub or a package that holds the trunk's weights is missing.
    """
    needed("huggingface_hub", "fadeup share")
    path = weights_file(model)
    if path is None:
        raise ValueError(
            f"model must be one that fadeup train wrote, got {str(model)!r}; save others by SegFormer.from_pretrained("
            "name).save_pretrained(folder)"
        )
    network, recipe, about = load_trained(path)
    if not isinstance(network, Pretrained):
        raise ValueError(f"{model} must be a network of fadeup.models, got a {type(network).__name__}")
    if more := _more(path):
        network.record = provenance(recipe, about, more)
    card = {"license": license} if license else {}
    return network.save_pretrained(
        folder, push_to_hub=push is not None, repo_id=push, model_card_kwargs=card, **(options if push else {})
    )


def _more(path: Path) -> dict[str, Any]:
    """What is told of the network beside its file of weights: by the list of those that ship, or by its run folder."""
    for entry in shipped().values():
        if path == ASSETS / entry["file"]:
            return entry
    try:
        results = read_json(path.with_name("results.json"))
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}
