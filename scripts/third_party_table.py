"""Networks of other libraries before and after `fadeup.upgrade`; writes the table of docs/plug.md.

python scripts/third_party_table.py
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fadeup

PAGE = Path(__file__).parent.parent / "docs" / "plug.md"
HEAD = ("network", "upgraded", "parameters", "odd sizes", "where", "guides")
SIZE, ODD = (128, 192), (131, 197)


@dataclass(frozen=True)
class Network:
    """A network of another library, small where it can be."""

    build: Callable[[], nn.Module]
    prepare: Callable[[Tensor], Any] = lambda image: image
    """A batch of images as the network's input."""
    eligible: bool = True


def smp(name: str, encoder: str = "resnet18") -> Network:
    def build() -> nn.Module:
        import segmentation_models_pytorch

        return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=3)

    return Network(build)


def torchvision(name: str, *, eligible: bool = True) -> Network:
    def build() -> nn.Module:
        from torchvision import models

        options: dict[str, Any] = {"weights": None, "weights_backbone": None}
        if not eligible:
            return getattr(models.segmentation, name)(**options)
        options |= {"min_size": SIZE[0] // 2, "max_size": SIZE[1], "num_classes": 3}
        if name.startswith("retina"):  # an untrained one is sure of nothing
            options |= {"score_thresh": 0.0, "detections_per_img": 5}
        else:
            options |= {"box_score_thresh": 0.0, "box_detections_per_img": 5, "rpn_post_nms_top_n_test": 50}
        torch.manual_seed(0)
        return getattr(models.detection, name)(**options)

    return Network(build, list if eligible else (lambda image: image), eligible)


def segformer() -> nn.Module:
    import transformers

    config = transformers.SegformerConfig(
        hidden_sizes=[16, 32, 64, 128], decoder_hidden_size=32, num_labels=3, depths=[1, 1, 1, 1]
    )
    return transformers.SegformerForSemanticSegmentation(config)


def upernet() -> nn.Module:
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    widths = [16, 32, 64, 128]
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=widths, depths=[1, 1, 1, 1], layer_type="basic", out_features=stages
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=32, num_labels=3, auxiliary_channels=16, auxiliary_in_channels=64
    )
    return transformers.UperNetForSemanticSegmentation(config)


NETWORKS: Mapping[str, Network] = {
    **{
        f"smp {name}": smp(name)
        for name in ("Unet", "UnetPlusPlus", "FPN", "Linknet", "MAnet", "PAN", "UPerNet", "Segformer", "DeepLabV3Plus")
    },
    "smp Unet, timm EfficientNet-Lite0": smp("Unet", "tu-tf_efficientnet_lite0"),
    "smp Unet, timm ConvNeXt": smp("Unet", "tu-convnext_atto"),
    "smp FPN, timm HRNet": smp("FPN", "tu-hrnet_w18_small"),
    "torchvision Faster R-CNN": torchvision("fasterrcnn_resnet50_fpn"),
    "torchvision Mask R-CNN": torchvision("maskrcnn_resnet50_fpn"),
    "torchvision RetinaNet": torchvision("retinanet_resnet50_fpn"),
    "torchvision DeepLabV3": torchvision("deeplabv3_resnet50", eligible=False),
    "torchvision FCN": torchvision("fcn_resnet50", eligible=False),
    "transformers SegFormer": Network(segformer),
    "transformers UperNet": Network(upernet),
}


def image(size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))


def leaves(output: Any) -> Iterator[Tensor]:
    """The tensors of an output, whatever the library wraps them in."""
    if isinstance(output, Tensor):
        yield output
    elif output is not None:
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from leaves(part)


def takes(network: Network, model: nn.Module, size: tuple[int, int]) -> bool:
    """Whether the network takes images of that size, as it came."""
    try:
        with torch.no_grad():
            model(network.prepare(image(size)))
    except (RuntimeError, ValueError):
        return False
    return True


def row(name: str, report: fadeup.plug.Report | None, odd: bool) -> str:
    """The network's line of the table."""
    taken = "yes" if odd else "refuses"
    if report is None:
        return f"| {name} | none | – | {taken} | – | – |"
    modules = dict.fromkeys(re.sub(r":\d+$", "", where.where) for where in report.placed)
    guides = dict.fromkeys(where.guide for where in report.placed)
    cells = (name, str(len(report.placed)), f"{report.parameters:+,}", taken, _shortened(modules), _shortened(guides))
    return "| " + " | ".join(cells) + " |"


def _shortened(names: Mapping[str, Any]) -> str:
    first, *others = names
    return f"`{first}`" + (f" … `{others[-1]}`" if others else "")


def main() -> None:
    warnings.filterwarnings("ignore")
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name, network in NETWORKS.items():
        torch.manual_seed(0)
        model = network.build().eval()
        odd = takes(network, model, ODD)
        report = fadeup.upgrade(model, "fade", example_inputs=network.prepare(image())) if network.eligible else None
        lines.append(row(name, report, odd))
        print(lines[-1])
    page = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- networks:begin -->", "<!-- networks:end -->"
    table = "\n".join([begin, "", *lines, "", end])
    PAGE.write_text(re.sub(f"{begin}.*{end}", lambda _: table, page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
