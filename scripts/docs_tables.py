"""The tables of docs/choosing.md and docs/papers.md, from the results that are kept and from the code's own counts.

    python scripts/docs_tables.py             writes the tables between the marks of the pages
    python scripts/docs_tables.py --check     fails where a page is not current

`benchmarks/results/experiments.json` holds the lab log's results and the papers' numbers. Times come from `bench.json`,
`networks.json` and `figure7.json` beside it, parameters and multiply–accumulates from `fadeup.cost`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from docs_results import (
    ABSENT,
    MATTING,
    REGIONS,
    RESULTS,
    ROOT,
    by_id,
    compared,
    own,
    paper,
    results,
    row,
    score_text,
    scores,
)

from fadeup import UPSAMPLERS, build_upsampler
from fadeup.bench.tables import best_cases, inserted, machine_text, number, read, table
from fadeup.cost import FIGURE_7, MATTING_HEAD, SEGMENTATION_HEAD, head_cost, upsampler_cost

B123 = ("carafe", "b1", "b3")
LONG = ("reconstruction-long", "reconstruction-long-others")
TIMED = ("median_ms", "peak_mib")
UNITS = {"M": 1e6, "K": 1e3, "": 1e9}

# docs/choosing.md


def segmentation(metric: str) -> str:
    """Networks with a strong trunk: SegFormer's head."""
    return compared(
        [
            ("CamVid, 400 steps", own(["camvid"], metric)),
            ("land cover, 200 steps", own(["landcover-starts", "landcover-all"], metric)),
            ("land cover, backbone frozen, 300 steps", own(["landcover-frozen"], metric)),
            ("*FADE's paper and code page*: ADE20K, 160,000 steps", paper("code-segmentation", [metric])),
            ("*later, same group*", paper("later-segmentation", [metric])),
        ]
    )


def segnet() -> str:
    return compared(
        [
            ("Weizmann Horse, 1,400 steps: mIoU", own(["weizmann"], "miou")),
            ("boundary IoU", own(["weizmann"], "biou")),
            ("*FADE's paper*, VGG-16 at 224²: mIoU", paper("table2", ["miou"])),
        ]
    )


def reconstruction() -> str:
    ssims = [scores("experiments", run, ["ssim"]) for run in LONG]
    return compared(
        [
            ("5 epochs, 7,000 pictures: PSNR", own(LONG, "psnr")),
            ("SSIM", lambda name: next(filter(ABSENT.__ne__, (ssim(name) for ssim in ssims)), ABSENT)),
            ("*FADE's paper*, 100 epochs, 60,000 pictures: PSNR", paper("table1-reconstruction", ["psnr"])),
        ]
    )


def matting() -> str:
    return compared(
        [
            ("cut-outs, 500 steps: SAD", own(["cutouts"], "sad")),
            ("Grad", scores("experiments", "cutouts", ["grad"])),
            ("*paper*: SAD", paper("table3-matting", ["sad"])),
            ("*poster and code page*: SAD", paper("code-matting", ["sad"])),
        ]
    )


def detection() -> str:
    return compared([("*later, same group*: box AP", paper("later-detection", ["ap"]))])


def start() -> str:
    """FADE's two starts, in everything that was trained with both."""
    names = {"bilinear": "bilinear", "FADE, default start": "fade", "FADE, `init=xavier`": "fade,init=xavier"}
    tasks = (("land cover, 200 steps: mIoU / bIoU", "landcover-starts"), ("CamVid, 400 steps", "camvid"))
    columns = [(text, scores("experiments", name, REGIONS)) for text, name in tasks]
    columns.append(("cut-outs, 500 steps: SAD", scores("experiments", "cutouts", ["sad"])))
    rows = [(label, *(cell(name) for _, cell in columns)) for label, name in names.items()]
    short, later = (scores("experiments", name, ["psnr"]) for name in ("reconstruction-default", "demo-reconstruction"))
    psnr = (later("bilinear"), later("fade"), short("fade"))  # the first entry is older than the default
    rows = [(*cells, last) for cells, last in zip(rows, psnr, strict=True)]
    return table(("", *(text for text, _ in columns), "reconstruction, 3 epochs: PSNR"), rows, 1)


def length() -> str:
    """The same rows after few and after more steps."""
    three, five = ("bilinear", "carafe", "fade"), ("bilinear", "carafe", "b1", "b3", "fade")
    pairs = (
        ("land cover, mIoU", "miou", "demo-landcover-80", "demo-landcover-200", three),
        ("cut-outs, SAD", "sad", "cutouts", "cutouts-1500", ("bilinear",)),
        ("reconstruction, PSNR", "psnr", "reconstruction-default", "reconstruction-long", five),
    )
    rows = []
    for task, metric, *runs, names in pairs:
        for name in names:
            cells = (cell for run in runs for cell in (schedule(run), scores("experiments", run, [metric])(name)))
            rows.append((task, f"`{name}`", *cells))
            task = ""
    return table(("", "upsampler", "shorter", "", "longer", ""), rows, 2)


def schedule(name: str) -> str:
    """Steps, or epochs and pictures, of an experiment."""
    setting = by_id("experiments", name)["setting"]
    length = setting["schedule"].split(", ")[0]
    return f"{length} of {setting['data'].split(', ')[1]}" if "epoch" in length else length


def finetuned() -> str:
    """A trained U-Net, upgraded."""
    rows = []
    for one, other in zip(
        *(by_id("experiments", f"finetune-{name}")["rows"] for name in ("adamw", "sgd")), strict=True
    ):
        values = (one["before"], one["scores"], other["scores"])
        rows.append((one["label"], *(" / ".join(score_text(m, s[m]) for m in REGIONS) for s in values)))
    return table(("", "at the swap: mIoU / bIoU", "after 150 steps of AdamW", "after 150 steps of SGD"), rows, 1)


def measured() -> dict[tuple[str, str], dict[str, Any]]:
    """What `fadeup bench` has of 256 channels, 64² → 128², float32, by upsampler and pass."""
    wanted = {"channels": 256, "side": 64, "scale": 2, "dtype": "float32", "layout": "channels_last", "batch": 1}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for result in best_cases(read(RESULTS / "bench.json")):
        case = result["case"]
        if not result["refused"] and all(case[key] == value for key, value in wanted.items()):
            peers = result["peers"]
            found[case["operator"], case["passes"]] = peers[result["own"]]
            for name in peers.keys() & UPSAMPLERS.keys():
                found.setdefault((name, case["passes"]), peers[name])
    return found


def costs() -> str:
    """Parameters, multiply–accumulates, time and memory of each upsampler."""
    times, rows = measured(), []
    for name in (*UPSAMPLERS, "b4", "nearest+gate", "carafe+gate"):
        cost = upsampler_cost(name, 256, 64, 64)
        forward, both = (times.get((name, passes)) for passes in ("forward", "forward+backward"))
        values = [number(one[key]) if one else "not measured" for one in (forward, both) for key in TIMED]
        rows.append((f"`{name}`", f"{cost.parameters:,}", f"{cost.macs / 1e6:,.0f}", *values))
    header = ("upsampler", "parameters", "MMACs", "forward, ms", "MiB", "forward + backward, ms", "MiB")
    return f"{table(header, rows, 1)}\n\n{machine_text(read(RESULTS / 'bench.json'))}"


def eager() -> str:
    """What was timed with the implementation in plain PyTorch."""
    curve, environment = results("figure7")["channels"], results("figure7")["environment"]
    at = curve["x"].index(256)
    rows = []
    for label in sorted(curve["median_ms"], key=lambda label: curve["median_ms"][label][at]):
        values = (number(curve[key][label][at]) for key in ("median_ms", "iqr_ms", "peak_mib"))
        rows.append((f"`{FIGURE_7[label]}`", *values))
    text = f"torch {environment['torch']}, {environment['threads']} threads, commit {environment['commit']}."
    return f"{table(('upsampler', 'forward, ms', 'IQR', 'MiB'), rows, 1)}\n\n{text}"


def networks() -> str:
    """SegFormer-B1 as a whole."""
    peers = read(RESULTS / "networks.json")["networks"]["peers"]
    rows = [
        (name, f"{peer['parameters']:,}", number(peer["median_ms"]), number(peer["q3_ms"] - peer["q1_ms"]))
        for name, peer in peers.items()
    ]
    return (
        f"{table(('network', 'parameters', 'ms', 'IQR'), rows, 1)}\n\n{machine_text(read(RESULTS / 'networks.json'))}"
    )


def takes(name: str, channels: int, size: int) -> bool:
    """Whether it upsamples 4 x 4 to a size, under an encoder of so many channels."""
    try:
        scale = max(2, size // 4)
        build_upsampler(name, 8, channels, scale=scale)(torch.zeros(1, 8, 4, 4), torch.zeros(1, channels, size, size))
    except ValueError:
        return False
    return True


def interface() -> str:
    """What each needs and serves, by trying."""
    rows = []
    for name in UPSAMPLERS:
        ratios = "any ≥ 1" if takes(name, 8, 11) and takes(name, 8, 5) else "whole" if takes(name, 8, 12) else "2"
        encoder = "its values" if build_upsampler(name, 8).reads_encoder else "not needed"
        rows.append((f"`{name}`", encoder, ratios, "yes" if takes(name, 6, 8) else "no"))
    return table(("upsampler", "encoder's map", "ratios", "unequal channels"), rows, 4)


# docs/papers.md


def table_1_left() -> str:
    return compared(
        [("*paper*: mIoU / bIoU", paper("table1-sunrgbd", REGIONS)), ("here", lambda _: "not measured")], B123
    )


def table_1_right() -> str:
    metrics = ("psnr", "ssim", "mae", "rmse")
    return compared(
        [
            ("*paper*, 100 epochs: PSNR / SSIM / MAE / RMSE", paper("table1-reconstruction", metrics)),
            ("here, 5 of 100 epochs, 60,000 pictures", scores("experiments", "table1-five-epochs", metrics)),
            ("here, 5 epochs, 7,000 pictures, 2 seeds", scores("experiments", "reconstruction-long", metrics)),
        ],
        (*B123, "b4", "fade"),
    )


def table_1_cost() -> str:
    """What 100 epochs would take: 60,000 steps."""
    steps = by_id("experiments", "table1-five-epochs")["step_seconds"]
    rows = [(f"`{name}`", f"{s:.2f}", f"{s * 60_000 / 3600:.1f}") for name, s in steps.items()]
    return table(("upsampler", "measured: s a step", "estimated: hours for 60,000 steps"), rows, 1)


def table_2() -> str:
    def seconds(name: str) -> str:
        found = row("experiments", "weizmann", name)
        return str(found["seconds"]) if found else ABSENT

    columns = [("*paper*: mIoU", paper("table2", ["miou"])), ("here: mIoU", own(["weizmann"], "miou"))]
    columns += [("here: boundary IoU", own(["weizmann"], "biou")), ("s", seconds)]
    return compared(columns)


def table_3_matting() -> str:
    return compared(
        [
            ("*paper*: SAD / MSE / Grad / Conn", paper("table3-matting", MATTING)),
            ("*poster, code page*", paper("code-matting", MATTING)),
            ("here: cut-outs, small network, 500 steps", scores("experiments", "cutouts", MATTING)),
        ]
    )


def table_3_segmentation() -> str:
    return compared(
        [
            ("*paper, code page*: mIoU / bIoU", paper("code-segmentation", REGIONS)),
            ("*later, same group*", paper("later-segmentation", REGIONS)),
            ("here: CamVid, 400 steps", scores("experiments", "camvid", REGIONS)),
            ("here: land cover, 200 steps, 3 seeds", scores("experiments", "landcover-starts", REGIONS)),
        ]
    )


def agrees(claim: str, value: int) -> bool:
    """Whether a value, rounded as the claim is, is the claim."""
    written, unit = re.fullmatch(r"\+([\d.]+)([MK]?)", claim).groups()
    places = len(written.partition(".")[2])
    return f"{value / UNITS[unit]:.{places}f}" == written


def table_3_cost() -> str:
    """The additions that the papers give, and what the code counts."""
    rows = []
    for one in results("experiments")["paper_costs"]["rows"]:
        for head, layout in (("matting", MATTING_HEAD), ("segmentation", SEGMENTATION_HEAD)):
            cost, claim = head_cost(one["upsampler"], layout), one[head]
            same = [agrees(claim["parameters"], cost.parameters), agrees(claim["gflops"], cost.macs)]
            counts = (claim["parameters"], f"{cost.parameters:,}", "equal" if same[0] else "**other**")
            macs = (claim["gflops"], f"{cost.macs / 1e9:.3f}", "equal" if same[1] else "**other**")
            rows.append((f"`{one['upsampler']}`" if head == "matting" else "", head, *counts, *macs))
    header = ("upsampler", "head", "*papers*: parameters", "counted", "", "*papers*: GFLOPs", "counted, GMACs", "")
    return table(header, rows, 2)


def table_4() -> str:
    return compared(
        [
            ("*paper*: SAD / MSE / Grad / Conn", paper("table4", MATTING)),
            ("*paper*: mIoU / bIoU", paper("table4", REGIONS)),
            ("here: reconstruction, PSNR / SSIM", scores("experiments", "reconstruction-long", ("psnr", "ssim"))),
        ],
        ("b1", "b2", "b3", "b4", "b5", "b6"),
    )


def lite() -> str:
    return compared(
        [
            ("*code page*: SAD / MSE / Grad / Conn", paper("code-matting", MATTING)),
            ("*code page*: mIoU / bIoU", paper("code-segmentation", REGIONS)),
            ("here: reconstruction, 1 seed", scores("experiments", "reconstruction-long-others", ("psnr", "ssim"))),
            ("the same, 2 seeds", scores("experiments", "reconstruction-long", ("psnr", "ssim"))),
        ],
        ("bilinear", "fade_lite", "fade"),
    )


def runs() -> str:
    """Every command that the tables draw on."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in results("experiments")["experiments"]:
        command = f"`{one['command']}`" if one["command"] else "that of the row above, other upsamplers"
        if one["command"] or not one.get("in_words"):  # an older form of an experiment has no row
            groups.setdefault((one["date"], one["title"], command), []).append(one)
    rows = []
    for place, group in groups.items():
        seeds = sorted({seed for one in group for seed in one["seeds"]})
        costs = dict.fromkeys(one["cost"] for one in group)
        missing = dict.fromkeys(text for one in group for text in one["missing"])
        rows.append((*place, ", ".join(map(str, seeds)), "; ".join(costs), "; ".join(missing) or ABSENT))
    return table(("date", "entry of the lab log", "command", "seeds", "cost", "missing"), rows, 6)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/choosing.md": {
        "regions": lambda: segmentation("miou"),
        "boundaries": lambda: segmentation("biou"),
        "segnet": segnet,
        "reconstruction": reconstruction,
        "matting": matting,
        "detection": detection,
        "start": start,
        "length": length,
        "finetuned": finetuned,
        "costs": costs,
        "eager": eager,
        "networks": networks,
        "interface": interface,
    },
    "docs/papers.md": {
        "table-1-left": table_1_left,
        "table-1-right": table_1_right,
        "table-1-cost": table_1_cost,
        "table-2": table_2,
        "table-3-matting": table_3_matting,
        "table-3-segmentation": table_3_segmentation,
        "table-3-cost": table_3_cost,
        "table-4": table_4,
        "lite": lite,
        "detection": detection,
        "runs": runs,
    },
}


def current(page: str) -> str:
    """The text that a page must have."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        text = inserted(text, f"{make()}\n", (f"<!-- {name}:begin -->", f"<!-- {name}:end -->"), path)
    return text


def stale() -> list[str]:
    """Pages whose tables are not those of the results."""
    return [page for page in PAGES if current(page) != (ROOT / page).read_text(encoding="utf-8")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is not current")
    if parser.parse_args().check:
        sys.exit("\n".join(f"{page} is not current: python scripts/docs_tables.py" for page in stale()) or 0)
    for page in PAGES:
        (ROOT / page).write_text(current(page), encoding="utf-8")


if __name__ == "__main__":
    main()
