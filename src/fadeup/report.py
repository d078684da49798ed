"""Tables, figures and the HTML report of a comparison, and the figure of `fadeup cost`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from rich import box
from rich.table import Table

from fadeup.checkpoint import write
from fadeup.compare import Summary, TrainedRow
from fadeup.cost import Cost, Row
from fadeup.recipes.recipe import Metric, Recipe, Split

# Okabe and Ito's colours, told apart by colour-blind readers, with markers as a second sign.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A500")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TEMPLATE = Path(__file__).parent / "report.html.jinja"
VERDICTS = {"win": "better", "loss": "worse", "even": "undecided"}


def score_text(metric: Metric, score: tuple[float, float | None]) -> str:
    """Mean ± spread in the digits of the metric."""
    mean, spread = score
    return f"{mean:.{metric.digits}f}" + ("" if spread is None else f" ± {spread:.{metric.digits}f}")


def difference_text(metric: Metric, line: Summary) -> str:
    """Difference to the baseline with its interval; empty for the baseline."""
    if metric.name not in line.differences:
        return ""
    d, digits = line.differences[metric.name], metric.digits
    return f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"


def verdict_text(metric: Metric, line: Summary) -> str:
    """The verdict in words; empty for the baseline."""
    return VERDICTS[line.differences[metric.name].verdict] if metric.name in line.differences else "baseline"


def count_text(count: int) -> str:
    """12345678 as 12.35 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return str(count)


def comparison_table(recipe: Recipe, table: Sequence[Summary], baseline: str) -> Table:
    """The table that `fadeup compare` prints."""
    first = recipe.metrics[0]
    seeds = max(line.seeds for line in table)
    spread = " ± standard deviation" if seeds > 1 else ""
    title = f"{recipe.trained}: score of the last step, mean{spread} of {seeds} seed(s)"
    view = Table(title=title, caption=few_seeds(seeds), box=box.SIMPLE_HEAD, padding=(0, 1, 1, 0))
    view.add_column("upsampler", min_width=12)
    for metric in recipe.metrics:
        view.add_column(f"{metric.label} {'↑' if metric.better == 'higher' else '↓'}", justify="right", no_wrap=True)
    view.add_column(f"Δ {first.label} to\n{baseline} [95 %]", justify="right", no_wrap=True)
    view.add_column("params\nMACs\ntime", justify="right", no_wrap=True)
    styles = {"win": "green", "loss": "red", "even": "default"}
    for line in table:
        d = line.differences.get(first.name)
        delta = difference_text(first, line).replace(" [", "\n\\[") + f"\n[{styles[d.verdict]}]" if d else ""
        view.add_row(
            f"[bold]{line.upsampler}[/]" + (f"\n[dim]{line.note}[/]" if line.note else ""),
            score_text(first, line.scores[first.name]).replace(" ±", "\n±"),
            *(f"{line.scores[metric.name][0]:.{metric.digits}f}" for metric in recipe.metrics[1:]),
            delta + verdict_text(first, line),
            f"{count_text(line.parameters)}\n{count_text(line.macs)}\n{line.seconds:.0f} s",
        )
    return view


def few_seeds(seeds: int) -> str:
    """A warning where an interval over seeds rests on fewer than three."""
    return f"{seeds} seed(s): the intervals say little about other seeds" if seeds < 3 else ""


def order_text(recipe: Recipe, table: Sequence[Summary]) -> str:
    """The order as it came out, and the paper's for the rows it has."""
    metric = recipe.metrics[0]
    came = " > ".join(f"{line.upsampler} {line.scores[metric.name][0]:.{metric.digits}f}" for line in table)
    text = f"Order by {metric.label}, best first: {came}."
    known = sorted(
        (
            (line.upsampler, recipe.paper[line.upsampler][metric.name])
            for line in table
            if line.upsampler in recipe.paper
        ),
        key=lambda pair: -pair[1] if metric.better == "higher" else pair[1],
    )
    if len(known) > 1:
        order = " > ".join(f"{name} {value}" for name, value in known)
        text += f" The paper ({recipe.paper_protocol}): {order}."
    return text


def cost_view(rows: Sequence[Row], title: str) -> Table:
    """The table that `fadeup cost` prints."""
    view = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.add_column("\nupsampler", no_wrap=True)
    for name in ("single\nparams", "\nMACs", "matting\nparams", "head\nGMACs", "SegFormer\nparams", "head\nGMACs"):
        view.add_column(name, justify="right", no_wrap=True)
    for row in rows:

        def head(cost: Cost) -> tuple[str, str]:
            return f"+{cost.parameters:,}", f"+{cost.macs / 1e9:.3f}"

        single = f"{row.single.parameters:,}", count_text(row.single.macs)
        view.add_row(row.upsampler, *single, *head(row.matting_head), *head(row.segmentation_head))
    return view


def figure_cost(curves: dict[str, Any], timings: dict[str, Any] | None = None) -> Figure:
    """Figure 7 of the paper: multiply–accumulates over channels and over sizes; measured time and memory beneath."""
    measured = () if timings is None else ("median_ms", "peak_mib")
    figure = Figure(figsize=(10, 4 * (1 + len(measured))), layout="constrained")
    axes = figure.subplots(1 + len(measured), 2, squeeze=False)
    labels = {"median_ms": "forward, ms", "peak_mib": "peak memory, MiB"}
    for column, (key, label) in enumerate((("channels", "channels"), ("sizes", "side of the decoder map"))):
        fixed = "112 x 112" if key == "channels" else f"{curves['sizes']['channels']} channels"
        lines = {name: [value / 1e9 for value in values] for name, values in curves[key]["macs"].items()}
        draw_lines(axes[0, column], curves[key]["x"], lines)
        axes[0, column].set(
            title=f"decoder map of {fixed}" if key == "channels" else fixed, xlabel=label, ylabel="GMACs"
        )
        for row, field in enumerate(measured, start=1):
            assert timings is not None
            axis = axes[row, column]
            draw_lines(axis, timings[key]["x"], timings[key][field], timings[key]["iqr_ms"] if row == 1 else None)
            fixed = (
                f"{timings['channels']['size']}²" if key == "channels" else f"{timings['sizes']['channels']} channels"
            )
            axis.set(title=f"measured at {fixed}", xlabel=label, ylabel=labels[field])
    axes[0, 0].legend(frameon=False)
    return figure


def draw_lines(axis: Any, x: Sequence[int], lines: dict[str, Any], spread: dict[str, Any] | None = None) -> None:
    """Curves on doubly logarithmic axes, each with a colour and a marker of its own."""
    for index, (name, values) in enumerate(lines.items()):
        style = {"color": COLORS[index], "marker": MARKERS[index], "markersize": 4, "linewidth": 1.5, "label": name}
        if spread is None:
            axis.plot(x, values, **style)
        else:
            axis.errorbar(x, values, yerr=np.array(spread[name]) / 2, capsize=2, **style)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(x, [str(value) for value in x])
    tidy(axis)


def tidy(axis: Any) -> None:
    """A faint grid, and no frame but the two axes."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def zoom(picture: np.ndarray) -> tuple[slice, slice]:
    """The square of two fifths of the height with the most detail, by the sum of absolute differences."""
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    detail = np.abs(np.diff(grey.astype(float), axis=0, append=0)) + np.abs(
        np.diff(grey.astype(float), axis=1, append=0)
    )
    side = max(4, min(grey.shape) * 2 // 5)
    sums = np.lib.stride_tricks.sliding_window_view(detail, (side, side))[1:-1, 1:-1].sum(axis=(2, 3))
    y, x = np.unravel_index(sums.argmax(), sums.shape)
    return slice(y + 1, y + 1 + side), slice(x + 1, x + 1 + side)


def figure_pictures(recipe: Recipe, data: Split, rows: Sequence[TrainedRow], index: int, image: int) -> Figure:
    """One test picture, the rows' number `index` and the data's number `image`: outputs, a crop, and error maps."""
    originals = recipe.originals(recipe.prepare(data.test[image]))
    crop = zoom(list(originals.values())[-1])
    limit = max(float(row.errors[index].max()) for row in rows)
    panels = [(title, picture, None) for title, picture in originals.items()]
    panels += [(row.upsampler, row.pictures[index], row.errors[index]) for row in rows]
    figure = Figure(figsize=(1.5 * len(panels), 4.9), layout="constrained")
    axes = figure.subplots(3, len(panels))
    shades = None
    for column, (name, picture, error) in zip(axes.T, panels, strict=True):
        column[0].set_title(name.replace(",", "\n"), fontsize=10 if "," not in name else 7, y=1.1)
        note = recipe.notes.get(name, "")
        column[0].text(0.5, 1.03, note, transform=column[0].transAxes, ha="center", va="bottom", fontsize=7)
        for axis, view in zip(column, (picture, picture[crop]), strict=False):
            axis.imshow(view, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        corner = crop[1].start - 0.5, crop[0].start - 0.5
        side = crop[0].stop - crop[0].start
        column[0].add_patch(Rectangle(corner, side, side, fill=False, color=COLORS[1], linewidth=1))
        if error is not None:
            shades = column[2].imshow(error.astype(float), cmap="magma", vmin=0, vmax=limit, interpolation="nearest")
        for axis in column:
            axis.set_axis_off()
    for axis, label in zip(axes[:, 0], ("output", "crop", "error"), strict=True):
        axis.text(-0.08, 0.5, label, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=9)
    assert shades is not None
    figure.colorbar(shades, ax=axes[2, :].tolist(), shrink=0.8)
    if legend := recipe.legend():
        patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*color), label=name) for name, color in legend.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def figure_scores(recipe: Recipe, table: Sequence[Summary], rows: Sequence[TrainedRow]) -> Figure:
    """The first metric: every seed as a dot, the mean as a line; and the means over the network's MACs."""
    metric = recipe.metrics[0]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, line in enumerate(table):
        position = len(table) - 1 - place
        color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
        values = [row.score(metric) for row in rows if row.upsampler == line.upsampler]
        left.plot(values, [position] * len(values), marker, color=color, markersize=6, alpha=0.8)
        left.plot([line.scores[metric.name][0]] * 2, [position - 0.3, position + 0.3], color=color, linewidth=2)
        right.plot([line.macs / 1e6], [line.scores[metric.name][0]], marker, color=color)
        right.annotate(
            line.upsampler, (line.macs / 1e6, line.scores[metric.name][0]), xytext=(5, 3), textcoords="offset points"
        )
    left.set_yticks(range(len(table)), [line.upsampler for line in reversed(table)])
    left.set(xlabel=metric.label, title="every seed, and the mean")
    right.set(xlabel="network, MMACs", ylabel=metric.label, title="score and cost")
    right.margins(x=0.2)
    for axis in (left, right):
        tidy(axis)
    return figure


def figure_losses(rows: Sequence[TrainedRow]) -> Figure:
    """Training loss of one seed's rows, in the order of the table; running mean over a twentieth of the steps."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axis = figure.subplots()
    for index, row in enumerate(rows):
        width = max(1, len(row.losses) // 20)
        smooth = np.convolve(row.losses, np.full(width, 1 / width), mode="valid")
        style = ("-", "--", ":", "-.")[index // len(COLORS) % 4]
        axis.plot(np.arange(len(smooth)) + width, smooth, style, color=COLORS[index % len(COLORS)], label=row.upsampler)
    axis.set(xlabel="step", ylabel="training loss", yscale="log", title=f"seed {rows[0].seed}")
    tidy(axis)
    axis.legend(frameon=False, ncols=4)
    return figure


def figure_bytes(figure: Figure, kind: str = "png") -> bytes:
    """The figure as a PNG of twice the usual density, or as SVG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=200)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the file's ending.

    Raises:
        ValueError: The ending is another.
    """
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"figure must be a .png or .svg file, got {path.name!r}")
    write(path, figure_bytes(figure, path.suffix[1:]))


def data_uri(image: bytes, kind: str) -> str:
    """The image for the `src` of an HTML image."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def write_report(
    path: Path,
    recipe: Recipe,
    data: Split,
    rows: Sequence[TrainedRow],
    table: Sequence[Summary],
    result: dict[str, Any],
) -> None:
    """Write the report as one HTML file that needs no other, and its pictures beside it as PNG."""
    places = [line.upsampler for line in table]
    first_seed = sorted((row for row in rows if row.seed == rows[0].seed), key=lambda row: places.index(row.upsampler))
    shown = enumerate(recipe.show(data))
    pictures = [figure_bytes(figure_pictures(recipe, data, first_seed, index, image)) for index, image in shown]
    (path.parent / "pictures").mkdir(exist_ok=True)
    for index, picture in enumerate(pictures, start=1):
        write(path.parent / "pictures" / f"{index}.png", picture)
    lines = [
        {
            "line": line,
            "scores": [score_text(metric, line.scores[metric.name]) for metric in recipe.metrics],
            "differences": [
                (difference_text(metric, line), verdict_text(metric, line), line.differences[metric.name].verdict)
                for metric in recipe.metrics
                if line.differences
            ],
            "parameters": count_text(line.parameters),
            "macs": count_text(line.macs),
        }
        for line in table
    ]
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text())
    page = template.render(
        recipe=recipe,
        result=result,
        lines=lines,
        order=order_text(recipe, table),
        few_seeds=few_seeds(max(line.seeds for line in table)),
        scores=data_uri(figure_bytes(figure_scores(recipe, table, rows), "svg"), "svg+xml"),
        losses=data_uri(figure_bytes(figure_losses(first_seed), "svg"), "svg+xml"),
        pictures=[data_uri(picture, "png") for picture in pictures],
        seed=rows[0].seed,
        paper=[
            (name, recipe.notes.get(name, ""), [values.get(m.name) for m in recipe.metrics])
            for name, values in recipe.paper.items()
        ],
    )
    write(path, page.encode())
