"""SegFormer, whose head upsamples by the upsampler of your choice (FADE, Figure 10)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_count, check_map
from fadeup.models import segformer_inference as inference
from fadeup.models.pretrained import Pretrained, is_pretrained
from fadeup.models.weights import hugging_face, is_mit, load_backbone, needed
from fadeup.upsamplers import Bilinear, build_upsampler, load_official, resolve
from fadeup.upsamplers.official import read_state, select

DEPTHS = ((2, 2, 2, 2), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 18, 3), (3, 8, 27, 3), (3, 6, 40, 3))
"""Blocks of each stage of MiT-B0 to B5."""
STRIDES = (4, 8, 16, 32)
ROUTES = ((3, (2, 1, 0)), (2, (1, 0)), (1, (0,)))
"""Each level that is upsampled, and the levels that guide it one after another."""
MIT = tuple(f"mit_b{size}" for size in range(6))
SMALLEST = 32
NOT_THE_BACKBONES = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version")
"""Entries of a `transformers.SegformerConfig` that `config.json` leaves out: paths, the head's, versions."""
OFFICIAL_KEYS = {
    **{f"linear_c{level + 1}.proj.": f"project.{level}." for level in range(4)},
    "linear_fuse.conv.": "fuse.",
    "linear_fuse.bn.": "norm.",
    "linear_pred.": "classify.",
}
"""How names of the authors' head begin, and ours; the upsamplers' are in `fadeup.upsamplers.fade`."""


class SegFormer(Pretrained, pipeline_tag="image-segmentation", tags=["semantic-segmentation"]):
    """SegFormer: a backbone of four levels, and a head that brings them to one size and classifies each point.

        p_i    = Conv1x1(backbone_i)                                  i = 1 ... 4, strides 4, 8, 16, 32
        up_4   = up(up(up(p_4, p_3), p_2), p_1),  up_3 = up(up(p_3, p_2), p_1),  up_2 = up(p_2, p_1)
        logits = Conv1x1(dropout(relu(bn(Conv1x1(concat(up_4, up_3, up_2, p_1))))))

    Six upsamplers that share no weights, guided by the projected maps, as in FADE's Figure 10. With
    `upsampler="bilinear"` there is one direct resize per level: SegFormer's own head.

    With a MiT-B1 and 150 classes: 13,715,798 parameters with bilinear, 285,084 more with FADE and 79,992 with
    FADE-Lite.

    Args:
        backbone: `"mit_b0"` to `"mit_b5"` (needs transformers), a timm name with features at strides 4 to 32, or
            a `transformers.SegformerModel`, which is taken as it is, or a dictionary of its configuration.
        num_classes: Channels of the logits.
        upsampler: Key of `fadeup.UPSAMPLERS` or an alias.
        channels: To which all levels are projected.
        dropout: Before the classifier.
        weights: Of the backbone, as in `fadeup.models.weights.load_backbone`.
        full_size: Resize the logits bilinearly to the image's size.
        frozen: Whether the backbone keeps its weights and BatchNorm's statistics in training.
        **upsampler_options: Of the upsampler.

    Raises:
        ValueError: Backbone or upsampler is unknown, a number is out of range, or, in the call, an image is too small.
        ModuleNotFoundError: transformers or timm is missing.

    Source: Xie et al., SegFormer, NeurIPS 2021; Lu et al., FADE, ECCV 2022, Figure 10.
    """

    def __init__(
        self,
        backbone: str | nn.Module | dict[str, Any] = "mit_b1",
        num_classes: int = 150,
        upsampler: str = "fade",
        *,
        channels: int = 256,
        dropout: float = 0.1,
        weights: str | Path | None = None,
        full_size: bool = False,
        frozen: bool = False,
        **upsampler_options: Any,
    ):
        super().__init__()
        self.full_size, self.frozen = full_size, frozen
        if isinstance(backbone, dict):
            transformers = needed("transformers", "backbone")
            backbone = transformers.SegformerModel(transformers.SegformerConfig.from_dict(backbone))
        self.backbone: Any = backbone
        if isinstance(backbone, str):
            self.backbone, widths = build_backbone(backbone)
        else:
            widths, self.in_channels = self.backbone.config.hidden_sizes, self.backbone.config.num_channels
        self.head = SegFormerHead(
            widths, num_classes, upsampler, channels=channels, dropout=dropout, **upsampler_options
        )
        if isinstance(backbone, str):
            load_backbone(self.backbone, backbone, weights)
        elif weights is not None:
            raise ValueError(f"weights must be None for a backbone that is built already, got {str(weights)!r}")
        if frozen:
            self.backbone.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, name: str | Path, upsampler: str | None = None, **options: Any) -> Self:  # type: ignore[override]
        """What `save_pretrained` wrote, or a SegFormer of Hugging Face, its weights in ours; class names in `classes`.

        Args:
            name: Folder that `save_pretrained` wrote or of a `SegformerForSemanticSegmentation`, or a name on the hub.
            upsampler: None for what was saved, and for the `"bilinear"` of Hugging Face's, which computes what the
                checkpoint does; any other starts afresh there with all else loaded.
            **options: `full_size`, and options of the upsampler; for what `save_pretrained` wrote, as in
                `Pretrained.from_pretrained`.

        Raises:
            ValueError: The checkpoint is of another network, or has no segmentation head, or is damaged.
            FileNotFoundError: There is no such folder, or it could not be downloaded.
            ModuleNotFoundError: transformers is missing.
        """
        own = options if upsampler is None else {"upsampler": upsampler, **options}
        if is_pretrained(name):
            return super().from_pretrained(name, **own)
        try:
            other = hugging_face("SegformerForSemanticSegmentation", str(name), str(name))
        except (ValueError, TypeError):
            if Path(name).is_dir() or not is_pretrained(name):
                raise
            return super().from_pretrained(name, **own)  # ours: its configuration is in the cache by now
        config, theirs = other.config, other.decode_head
        model = cls(
            other.segformer,
            config.num_labels,
            upsampler or "bilinear",
            channels=config.decoder_hidden_size,
            dropout=config.classifier_dropout_prob,
            **options,
        )
        for own, layer in zip(model.head.project, theirs.linear_projections, strict=True):
            own.load_state_dict({"weight": layer.proj.weight[:, :, None, None], "bias": layer.proj.bias})
        parts = ((model.head.fuse, theirs.linear_fuse), (model.head.norm, theirs.batch_norm))
        for own, layer in (*parts, (model.head.classify, theirs.classifier)):
            own.load_state_dict(layer.state_dict())
        model.classes = [config.id2label[index] for index in range(config.num_labels)]
        return model.eval()

    def current(self) -> dict[str, Any]:
        """As `Pretrained.current`; of a `transformers.SegformerModel` its configuration."""
        held: dict[str, Any] = {"full_size": self.full_size, "frozen": self.frozen}
        if "backbone" in self._odd_arguments and _is_mit_module(self.backbone):
            config = self.backbone.config.to_dict()
            held["backbone"] = {key: value for key, value in config.items() if key not in NOT_THE_BACKBONES}
        return held

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, num_classes, H/4, W/4)` of normalised images `(B, 3, H, W)`, at least 32 x 32.

        Quarters are rounded up by MiT; with `full_size` the logits are `(B, num_classes, H, W)`.
        """
        check_map("image", image, self.in_channels)
        if min(image.shape[2:]) < SMALLEST:
            height, width = image.shape[2:]
            raise ValueError(f"image must be at least {SMALLEST} x {SMALLEST}, got {height} x {width}; resize it")
        logits = self._fast(image) if inference.applies(self, image) else self.head(self.features(image))
        if self.full_size:
            logits = F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)
        return logits

    def train(self, mode: bool = True) -> Self:
        """As any module's; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, image: Tensor) -> list[Tensor]:
        """The four maps of the backbone, largest first."""
        if not _is_mit_module(self.backbone):
            return self.backbone(image)
        maps, x = [], image
        for stage in self.backbone.stages:
            maps.append(x := stage(x))
        return maps

    def _fast(self, image: Tensor) -> Tensor:
        """The same without gradients, within rounding."""
        if _is_mit_module(self.backbone):
            maps = inference.mit_maps(self.backbone, image)
        else:
            maps = self.backbone(image.contiguous(memory_format=torch.channels_last))
        return inference.head_logits(self.head, maps, ROUTES) if inference.serves(self.head) else self.head(maps)


class SegFormerHead(nn.Module):
    """The head of `SegFormer` over maps of any widths.

    Args:
        in_channels: Of the four maps, largest map first.
        num_classes: Channels of the logits.
        upsampler: Key of `fadeup.UPSAMPLERS` or an alias.
        channels: To which all levels are projected.
        dropout: Before the classifier.
        **upsampler_options: Of the upsampler.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        num_classes: int,
        upsampler: str,
        *,
        channels: int = 256,
        dropout: float = 0.1,
        **upsampler_options: Any,
    ):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("channels", channels)
        self.project = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.fuse = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        # Upsamplers last: with one seed all other layers start the same whatever the upsampler draws.
        self.upsamplers = nn.ModuleList(
            build_upsampler(upsampler, channels, channels, **upsampler_options) for _ in range(6)
        )
        if resolve(upsampler)[0] is Bilinear:
            self.upsamplers = nn.ModuleList()  # one direct resize per level

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits `(B, num_classes, H, W)` of maps `(B, C_i, H_i, W_i)`, the first of them of H x W."""
        projected = [project(x) for project, x in zip(self.project, maps, strict=True)]
        x = torch.cat([*self._upsampled(projected), projected[0]], dim=1)
        return self.classify(self.dropout(F.relu(self.norm(self.fuse(x)))))

    def load_official(
        self, state_dict: Mapping[str, Any] | str | os.PathLike[str], *, prefix: str = "decode_head."
    ) -> None:
        """Load the head of a checkpoint of the authors' public code.

        Args:
            state_dict: A dictionary or a file, as in `fadeup.load_official`, under the authors' names: linear_c1 to
                linear_c4, linear_fuse, linear_pred, upsamplers.
            prefix: Takes the keys that start so, without it.

        Raises:
            ValueError: The file cannot be read, or names or shapes do not fit.
            FileNotFoundError: There is no such file.
        """
        state = select(read_state(state_dict), prefix)
        own = {key: value for key, value in self.state_dict().items() if not key.startswith("upsamplers.")}
        given = {}
        for name, value in state.items():
            start = next((start for start in OFFICIAL_KEYS if name.startswith(start)), None)
            if start is not None:
                given[OFFICIAL_KEYS[start] + name.removeprefix(start)] = value
        for key, value in own.items():
            if key in given and key.startswith("project."):
                given[key] = given[key].reshape(*given[key].shape, *(1,) * (value.dim() - given[key].dim()))
            got = tuple(given[key].shape) if key in given else "nothing of that name"
            if got != tuple(value.shape) and not key.endswith("num_batches_tracked"):
                raise ValueError(
                    f"state_dict must hold {tuple(value.shape)} for {key}, got {got}; set prefix or channels"
                )
        for index, upsampler in enumerate(self.upsamplers):
            load_official(upsampler, state, prefix=f"upsamplers.{index}.")
        self.load_state_dict({key: given.get(key, value) for key, value in own.items()}, strict=False)

    def _upsampled(self, projected: list[Tensor]) -> list[Tensor]:
        if not len(self.upsamplers):
            size = projected[0].shape[2:]
            return [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in projected[:0:-1]]
        upsamplers, results = iter(self.upsamplers), []
        for level, guides in ROUTES:
            x = projected[level]
            for guide in guides:
                x = next(upsamplers)(x, projected[guide])
            results.append(x)
        return results


def build_backbone(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """An untrained backbone and the channels of its four maps of strides 4, 8, 16 and 32.

    Raises:
        ValueError: The name is unknown, or the network has no such maps.
        ModuleNotFoundError: transformers or timm is missing.
    """
    if is_mit(name):
        widths = (32, 64, 160, 256) if name == "mit_b0" else (64, 128, 320, 512)
        transformers = needed("transformers", name)
        config = transformers.SegformerConfig(depths=DEPTHS[int(name[-1])], hidden_sizes=widths, drop_path_rate=0.1)
        return transformers.SegformerModel(config), widths
    return timm_features(name, STRIDES)


def timm_features(
    name: str,
    strides: tuple[int, ...],
    argument: str = "backbone",
    own: tuple[str, ...] = MIT,
    in_channels: int = 3,
) -> tuple[nn.Module, tuple[int, ...]]:
    """An untrained timm network that gives its last maps of the given strides, and their channels.

    Args:
        name: Of timm.
        strides: Of the maps.
        argument: What the caller's user gave the name as, for messages.
        own: Networks that the caller knows besides, for messages.
        in_channels: Of the image.

    Raises:
        ValueError: timm does not know the name, or the network has no such maps.
        ModuleNotFoundError: timm is missing.
    """
    timm = needed("timm", name)
    if not timm.is_model(name):
        known = repr(own[0]) if len(own) == 1 else f"{own[0]!r} to {own[-1]!r}"
        names = [*timm.list_models(), *own]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{argument} must be {known} or a name of timm, got {name!r}{hint}")
    try:
        with torch.random.fork_rng(), torch.device("meta"):
            reductions = timm.create_model(name, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError):  # what timm raises for networks that give no features
        reductions = []
    if not set(strides) <= set(reductions):
        rule = ", ".join(map(str, strides))
        raise ValueError(
            f"{argument} must be a network with features at strides {rule}, got {name!r} with {reductions}"
        )
    indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides)
    module = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices, in_chans=in_channels)
    if hasattr(module, "_stage_out_idx"):  # of its networks these alone keep stages that no map comes from
        module.blocks = module.blocks[: max(module._stage_out_idx)]
    return module, tuple(module.feature_info.channels())


def _is_mit_module(module: nn.Module) -> bool:
    return type(module).__name__ == "SegformerModel"
