"""Loads the authors' checkpoints of single upsamplers into ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fadeup.upsamplers import a2u, carafe, dysample, fade, indexnet, sapa

OFFICIAL_KEYS: dict[type[nn.Module], tuple[dict[str, str], ...]] = {
    fade.FADE: fade.OFFICIAL_KEYS,
    carafe.CARAFE: carafe.OFFICIAL_KEYS,
    indexnet.IndexNet: indexnet.OFFICIAL_KEYS,
    a2u.A2U: a2u.OFFICIAL_KEYS,
    sapa.SAPA: sapa.OFFICIAL_KEYS,
    dysample.DySample: dysample.OFFICIAL_KEYS,
}


def load_official(module: nn.Module, state_dict: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Load weights saved by the authors' public code of FADE, FADE-Lite, CARAFE, IndexNet, A2U, SAPA or DySample.

    Args:
        module: Our upsampler, built with the channels and options of the checkpoint.
        state_dict: The checkpoint, under the authors' names; the table of each is `OFFICIAL_KEYS` of its file.
        prefix: Takes the keys that start so, without it: `"decoder_layer4.up."` of a whole network.

    Raises:
        ValueError: The upsampler has no public checkpoint, or names or shapes do not fit. Nothing is loaded then.
    """
    tables = next((keys for kind, keys in OFFICIAL_KEYS.items() if isinstance(module, kind)), None)
    if tables is None:
        names = ", ".join(kind.__name__ for kind in OFFICIAL_KEYS)
        raise ValueError(f"module must be one of {names}, got {type(module).__name__}")
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    table = max(tables, key=lambda keys: len(given.keys() & keys.keys()))
    own = module.state_dict()
    unknown = sorted(key for key in given if table.get(key) not in own)
    loaded = {table[key]: value for key, value in given.items() if key not in unknown}
    missing = sorted(key for key in own.keys() - loaded.keys() if not key.endswith("num_batches_tracked"))
    if unknown or missing:
        raise ValueError(
            f"state_dict must be the weights of {module}\ngot unknown names {unknown or 'none'} and no weights for "
            f"{missing or 'none'}; build the upsampler with the options of the checkpoint, or set prefix"
        )
    wrong = {key: (tuple(own[key].shape), tuple(value.shape)) for key, value in loaded.items()}
    for key, (expected, got) in wrong.items():
        if expected != got:
            raise ValueError(f"{key} must be {expected}, got {got}; build the upsampler with the checkpoint's channels")
    module.load_state_dict(own | loaded)
