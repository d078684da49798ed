"""Loads the authors' checkpoints of single upsamplers into ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fadeup.reading import read_torch
from fadeup.upsamplers import a2u, carafe, dysample, fade, indexnet, sapa

OFFICIAL_KEYS: dict[type[nn.Module], tuple[dict[str, str], ...]] = {
    fade.FADE: fade.OFFICIAL_KEYS,
    carafe.CARAFE: carafe.OFFICIAL_KEYS,
    indexnet.IndexNet: indexnet.OFFICIAL_KEYS,
    a2u.A2U: a2u.OFFICIAL_KEYS,
    sapa.SAPA: sapa.OFFICIAL_KEYS,
    dysample.DySample: dysample.OFFICIAL_KEYS,
}
SHOWN = 5
"""Names in an error message: those of a whole network would fill pages."""


def load_official(
    module: nn.Module, state_dict: Mapping[str, Any] | str | os.PathLike[str], *, prefix: str = ""
) -> None:
    """Load weights saved by the authors' public code of FADE, FADE-Lite, CARAFE, IndexNet, A2U, SAPA or DySample.

    Args:
        module: Our upsampler, built with the channels and options of the checkpoint; its dtype and device are kept.
        state_dict: The checkpoint as `read_state` takes it, a dictionary or a file, under the authors' names; the
            table of each is `OFFICIAL_KEYS` of its file.
        prefix: Takes the keys that start so, without it: `"decoder_layer4.up."` of a whole network.

    Raises:
        ValueError: The upsampler has no public checkpoint, the file cannot be read, or names or shapes do not fit;
            where a prefix is missing the message names those that there are. Nothing is loaded then.
        FileNotFoundError: There is no such file.
    """
    tables = next((keys for kind, keys in OFFICIAL_KEYS.items() if isinstance(module, kind)), None)
    if tables is None:
        names = ", ".join(kind.__name__ for kind in OFFICIAL_KEYS)
        raise ValueError(f"module must be one of {names}, got {type(module).__name__}")
    state = read_state(state_dict)
    given = select(state, prefix)
    table = max(tables, key=lambda keys: len(given.keys() & keys.keys()))
    own = module.state_dict()
    unknown = sorted(key for key in given if table.get(key) not in own)
    loaded = {table[key]: _as_map(value, own[table[key]]) for key, value in given.items() if key not in unknown}
    missing = sorted(key for key in own.keys() - loaded.keys() if not key.endswith("num_batches_tracked"))
    if unknown or missing:
        raise ValueError(
            f"state_dict must be the weights of {module}\ngot unknown names {_shown(unknown)} and no weights for "
            f"{_shown(missing)}{_origin(state_dict)}; build the upsampler with the options of the checkpoint, or set "
            f"prefix{_prefixes(state, tables)}"
        )
    wrong = {key: (tuple(own[key].shape), tuple(value.shape)) for key, value in loaded.items()}
    for key, (expected, got) in wrong.items():
        if expected != got:
            raise ValueError(
                f"{key} must be {expected}, got {got}{_origin(state_dict)}; build the upsampler with the checkpoint's "
                "channels"
            )
    module.load_state_dict(own | loaded)


def _as_map(value: Tensor, like: Tensor) -> Tensor:
    """A linear layer's weight as that of a 1x1 convolution: SAPA's first code embeds by linear layers."""
    pointwise = like.dim() == 4 and value.dim() == 2 and like.shape[2:] == (1, 1)
    return value[:, :, None, None] if pointwise else value


def _shown(names: list[str]) -> str:
    more = len(names) - SHOWN
    return f"{names[:SHOWN]}{f' and {more} more' if more > 0 else ''}" if names else "none"


def _prefixes(state: Mapping[str, Tensor], tables: tuple[dict[str, str], ...]) -> str:
    """The prefixes under which a whole network has upsamplers of this kind, for the message."""
    first = {next(iter(keys)) for keys in tables}
    found = sorted({key.removesuffix(name) for name in first for key in state if key.endswith(f".{name}")})
    return f" to one of {_shown(found)}" if found else ""


# ---- reading ----

PARALLEL = "module."
"""What `nn.DataParallel` and `DistributedDataParallel` put in front of all names."""
WRAPPERS = ("state_dict", "model")


def read_state(source: Mapping[str, Any] | str | os.PathLike[str], name: str = "state_dict") -> dict[str, Tensor]:
    """The tensors of a checkpoint by name.

    Args:
        source: A dictionary, or a file: .safetensors, or anything that `torch.load(weights_only=True)` reads. Where it
            has `state_dict` or `model`, that is opened; where all names start with `module.`, that is taken off.
        name: What the caller's user gave it as, for messages.

    Raises:
        ValueError: The file is of another kind, damaged, or holds more than plain data; or what is there is no
            dictionary of dense tensors of real numbers.
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: safetensors is missing.
    """
    content: Any = _read(Path(source), name) if isinstance(source, str | os.PathLike) else source
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(map(_is_named_tensor, content.items())):
        raise ValueError(f"{name} must be a dictionary of tensors, got {_kind(content)}{_origin(source)}")
    parallel = all(key.startswith(PARALLEL) for key in content)
    return {key.removeprefix(PARALLEL) if parallel else key: value for key, value in content.items()}


def select(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What starts with `prefix`, without it; a `module.` that `read_state` took off may be there in `prefix`."""
    if not any(key.startswith(prefix) for key in state):
        prefix = prefix.removeprefix(PARALLEL)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _origin(source: Mapping[str, Any] | str | os.PathLike[str]) -> str:
    return f" in {str(source)!r}" if isinstance(source, str | os.PathLike) else ""


def _read(file: Path, name: str) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{name} must be a file that exists, got {str(file)!r}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return read_torch(file)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"safetensors must be installed for {file.name!r}, got {error}; pip install safetensors", name="safetensors"
        ) from error
    except Exception as error:  # unpickling, zip and header errors have no common class
        reason = (str(error) or type(error).__name__).splitlines()[0]  # torch goes on with how to run pickles
        raise ValueError(f"{name} must be a readable file of tensors, got {str(file)!r}: {reason}") from error


def _is_named_tensor(item: tuple[object, object]) -> bool:
    name, value = item
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not (value.is_complex() or value.is_quantized or value.is_meta)


def _kind(content: object) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    key, value = next(item for item in content.items() if not _is_named_tensor(item))
    odd = isinstance(key, str) and isinstance(value, Tensor)
    kind = f"{value.dtype}, {value.layout} on {value.device.type}" if odd else type(value).__name__
    return f"{kind} as {key!r:.80}"
