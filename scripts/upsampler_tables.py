"""The tables of docs/upsamplers/ that come from results: speed on each page, the figures' scores on the first.

    python scripts/upsampler_tables.py             writes the tables between the marks of the pages
    python scripts/upsampler_tables.py --check     fails where a page is not current

Times are those of `benchmarks/results/bench.json`, scores those of `upsamplers.json` beside it.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from docs_results import RESULTS, ROOT, results

from fadeup import UPSAMPLERS
from fadeup.bench.tables import best_cases, inserted, machine_text, number, read, table

PAGES = {
    "fade": ("fade", "fade_lite"),
    "carafe": ("carafe",),
    "indexnet": ("indexnet",),
    "a2u": ("a2u",),
    "sapa": ("sapa",),
    "dysample": ("dysample",),
    "classic": ("nearest", "bilinear", "deconv", "pixel_shuffle", "max_unpool"),
}
ABSENT = "not measured"
CASE = {"channels": 256, "side": 64, "scale": 2, "dtype": "float32", "layout": "channels_last", "batch": 1}


def measured(passes: str) -> dict[str, dict[str, Any]]:
    """What `fadeup bench` has of 256 channels, 64² → 128², float32, by operator."""
    found = {}
    for result in best_cases(read(RESULTS / "bench.json")):
        case = result["case"]
        if not result["refused"] and case["passes"] == passes and CASE.items() <= case.items():
            found[case["operator"]] = result
    return found


def milliseconds(peer: dict[str, Any] | None) -> str:
    """The median."""
    return number(peer["median_ms"]) if peer else ABSENT


def speed(names: tuple[str, ...]) -> str:
    """Time of the fused operator, of the same by unfold, and of bilinear, each forward and with the backward pass."""
    rows = []
    for name in names:
        for passes in ("forward", "forward+backward"):
            cases = measured(passes)
            own = cases.get(name)
            peers = own["peers"] if own else {}
            theirs = cases["fade"]["peers"]  # bilinear and DySample were timed beside FADE
            alone = peers.get(own["own"]) if own else theirs.get(name)
            label = f"`{name}`" if passes == "forward" else ""
            times = (milliseconds(peer) for peer in (alone, peers.get("unfold"), theirs["bilinear"]))
            rows.append((label, passes.replace("+", " + "), *times))
    header = ("", "pass", "as it is used, ms", "the same by unfold, ms", "bilinear, ms")
    where = machine_text(read(RESULTS / "bench.json"))
    return f"{table(header, rows, 2)}\n\n256 channels, 64² → 128², batch 1, float32, channels-last. {where}\n"


def figures() -> str:
    """The scores of the experiment that the figures show, the best first."""
    scores = results("upsamplers")
    ordered = sorted(UPSAMPLERS, key=lambda name: scores[name]["water"])
    rows = [(f"`{name}`", f"{scores[name]['water']:.4f}", f"{scores[name]['all']:.4f}") for name in ordered]
    return f"{table(('upsampler', 'error of water', 'of all four kinds'), rows, 1)}\n"


def current(page: str) -> str:
    """The text that a page must have."""
    path = ROOT / f"docs/upsamplers/{page}.md"
    name, text = ("figures", figures()) if page == "index" else ("speed", speed(PAGES[page]))
    return inserted(path.read_text(encoding="utf-8"), text, (f"<!-- {name}:begin -->", f"<!-- {name}:end -->"), path)


def stale() -> list[str]:
    """Pages whose tables are not those of the results."""
    pages = (*PAGES, "index")
    return [page for page in pages if current(page) != (ROOT / f"docs/upsamplers/{page}.md").read_text("utf-8")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is not current")
    check = parser.parse_args().check
    for page in stale():
        if check:
            sys.exit(f"docs/upsamplers/{page}.md is not current: python scripts/upsampler_tables.py")
        (ROOT / f"docs/upsamplers/{page}.md").write_text(current(page), encoding="utf-8")


if __name__ == "__main__":
    main()
