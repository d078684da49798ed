"""Files that are written whole or not at all: checkpoints of a training, weights of a finished network."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fadeup.reading import parsed, read_torch


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary name, synced, renamed.

    Raises:
        OSError: It cannot be written, for the disk is full or the folder read-only; what was at `path` is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as a compressed .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write(path, buffer.getvalue())


def save_checkpoint(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a training's state in place of its last one.

    Args:
        path: Of the checkpoint.
        identity: What the training is of, as plain data; `load_checkpoint` compares it.
        state: Tensors, numbers, strings, and lists and dictionaries of them.

    Raises:
        OSError: It cannot be written; the last checkpoint is still there.
    """
    buffer = io.BytesIO()
    torch.save({"identity": json.dumps(identity, sort_keys=True), "state": state}, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, buffer.getvalue())
    except OSError as error:
        kept = "; the one before it is kept" if path.exists() else ""
        raise OSError(f"{path} must be a file that can be written, got {error}{kept}") from error


def load_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote.

    Raises:
        ValueError: The file is damaged or no checkpoint, or of another training than `identity`.
    """
    try:
        content = read_torch(path)
        held, state = parsed(content["identity"]), content["state"]
        if not isinstance(held, dict) or not isinstance(state, dict):
            raise TypeError(f"a {type(held).__name__} and a {type(state).__name__} in place of dictionaries")
    except Exception as error:  # zip, pickle, key and type errors alike
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} must be a whole checkpoint, got {reason}; delete it to start again") from error
    wanted = json.loads(json.dumps(identity))
    if differing := differences(held, wanted):
        raise ValueError(
            f"{path} must be of the same training to resume, got {differing}; repeat its options or delete it"
        )
    return state


def differences(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """How two configurations differ, in words, a thousand letters at most; empty where they do not."""
    told = "; ".join(
        f"{key} is {held.get(key)!r} there, {wanted.get(key)!r} asked"
        for key in sorted(held.keys() | wanted.keys())
        if held.get(key) != wanted.get(key)
    )
    return told if len(told) <= 1000 else f"{told[:1000]} ..."


def save_weights(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Write a network's weights and buffers as safetensors, with `about` as JSON in the metadata."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write(path, save(tensors, {"fadeup": json.dumps(about)}))


def read_about(path: Path) -> dict[str, Any]:
    """What `save_weights` was told of the network.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or not one that `save_weights` wrote.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file of weights, got no such file; fadeup train writes one")
    try:
        with safe_open(path, "pt") as file:
            about = parsed(file.metadata()["fadeup"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} must be weights that fadeup train wrote, got {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path} must be weights that fadeup train wrote, got a {type(about).__name__} of them")
    return about


def load_weights(path: Path, model: nn.Module, *, without: str = "") -> None:
    """Put the weights of `path` into a network of the same shapes, as its own dtypes.

    Args:
        path: Of a safetensors file.
        model: The network.
        without: Beginning of the names that the file leaves out, and the network keeps; empty for none.

    Raises:
        ValueError: The file is damaged, names or shapes differ, or values are complex; the message names the first.
    """
    from safetensors.torch import load_file

    check_shapes(path, model, without=without)
    held = load_file(path)
    odd = [name for name, tensor in held.items() if tensor.is_complex()]
    if odd:
        raise ValueError(f"{path} must hold real values, got {held[odd[0]].dtype} as {odd[0]}")
    model.load_state_dict(model.state_dict() | held)


def check_shapes(path: Path, model: nn.Module, *, without: str = "") -> None:
    """Refuse a safetensors file whose names and shapes are not the network's; its values are not read.

    Args:
        path: Of the file.
        model: The network, which may be on torch's device `"meta"`, without memory of its own.
        without: As in `load_weights`.

    Raises:
        ValueError: The file is damaged, or a name or shape differs; the message names the first.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} must be a whole safetensors file, got {error}") from error
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = {name: shape for name, shape in own.items() if not (without and name.startswith(without))}
    for name in sorted(held.keys() | expected.keys()):
        there, here = (group.get(name, "nothing") for group in (held, expected))
        if there != here:
            raise ValueError(f"{path} must fit the network, got {name} of {there} in place of {here}")
