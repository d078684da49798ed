"""`fadeup eval`, and the scores that `fadeup train` ends with."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fadeup.cli import processes
from fadeup.cli.options import add_machine_options, check_device, positive, progress_bar, save, written

PREPARATION = ("network", "backbone", "weights", "channels", "size", "resize")
"""Fields by which a recipe prepares pictures as a network expects them, and describes it."""


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "eval",
        help="score a trained network over a data set",
        description="Scores a network over the test pictures of a data set: mIoU and boundary IoU with a line for each "
        "class, or the metrics of its task. For matting, --out keeps each picture's alpha as a PNG and its scores in "
        "scores.csv. With --out or --json an evaluation that was interrupted goes on by --resume. Under torchrun the "
        "processes share the pictures.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="run or shared folder, .safetensors, or a SegFormer of Hugging Face"
    )
    parser.add_argument("--data", metavar="TASK", help="data set to score on (default: the one it was trained on)")
    parser.add_argument("--source", help="folder with the data set (default: as in training)")
    parser.add_argument("--test-images", type=positive, metavar="N", help="the first so many")
    add_machine_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write alphas and scores of each picture (matting)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="replace what an earlier evaluation has left there")
    again.add_argument(
        "--resume", action="store_true", help="go on with an interrupted evaluation that had --out or --json"
    )
    parser.set_defaults(run=evaluate)


def evaluate(arguments: argparse.Namespace) -> None:
    """Load, score, print."""
    from rich.console import Console

    from fadeup.bench import environment
    from fadeup.checkpoint import write

    check_device(arguments.device)
    if arguments.json and not arguments.json.parent.is_dir():
        raise ValueError(f"--json must be in a folder that exists, got {arguments.json}")
    if arguments.resume and not (arguments.out or arguments.json):
        raise ValueError(
            "--resume must be given with --out or --json, beside which pictures' scores are kept, got none"
        )
    device = processes.join(arguments.device)
    recipe, network = _load(arguments, device)
    samples = recipe.test()
    kept = Kept(arguments, recipe, network, samples) if arguments.out or arguments.json else None
    if kept:
        arguments.hint = "; the same command with --resume goes on"
    console = Console(quiet=not processes.is_main())
    scores, classes = score(recipe, network, samples, device, arguments.workers, console, kept)
    count = len(samples)
    told = f"{arguments.model} on {count} test picture(s) of {recipe.task}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    show(recipe, scores, classes, console)
    if arguments.json and processes.is_main():
        result = {"model": arguments.model, "data": recipe.task, "config": asdict(recipe), "images": count}
        result |= {"scores": scores, "classes": classes, "environment": environment()}
        save(arguments.json, lambda path: write(path, (json.dumps(result, indent=2) + "\n").encode()))
    processes.leave()


def _load(arguments: argparse.Namespace, device: Any) -> tuple[Any, Any]:
    """The recipe whose test data is scored, and the network."""
    from fadeup.checkpoint import read_about
    from fadeup.predict import load_segmenter, load_trained, weights_file
    from fadeup.recipes import RECIPES, Segmentation

    model, task, path = arguments.model, arguments.data, weights_file(arguments.model)
    if task is not None and task not in RECIPES:
        raise ValueError(f"--data must be one of {', '.join(RECIPES)}, got {task!r}")
    if path is None and task is None:
        raise ValueError(f"--data must be given with a network of Hugging Face, got none for {model}")
    given = {"source": arguments.source, "test_images": arguments.test_images}
    given = {name: value for name, value in given.items() if value is not None}
    kind = RECIPES.get(str(read_about(path).get("task"))) if path is not None else None
    if path is not None and kind is not None and not issubclass(kind, Segmentation):
        network, recipe, _ = load_trained(path)
        return _scored_on(recipe, task, model, given), network.to(device)
    segmenter = load_segmenter(model, device)
    recipe = _on_data(segmenter.recipe, task, model, given)
    wanted, got = len(recipe.about[0]), len(segmenter.classes)
    if wanted != got:
        raise ValueError(
            f"{model} must have {wanted} classes as {recipe.task} has, got {got}; train one on it, or choose with "
            "--data and --source the data that it was trained on"
        )
    return recipe, segmenter.network


def _scored_on(held: Any, task: str | None, model: str, given: dict[str, Any]) -> Any:
    """The recipe of that data set; of matting any, with the network's own preparation of pictures."""
    from fadeup.recipes import RECIPES, Matting

    if task in (None, held.task):
        return replace(held, **given)
    kind = RECIPES[task]
    if not (isinstance(held, Matting) and issubclass(kind, Matting)):
        raise ValueError(f"--data must be {held.task!r} for {model}, got {task!r}")
    return replace(kind(), trunk=held.trunk, weights=held.weights, channels=held.channels, **given)


def _on_data(held: Any, task: str | None, model: str, given: dict[str, Any]) -> Any:
    """The recipe of that data set, preparing pictures as the network's own does."""
    from fadeup.recipes import RECIPES, Segmentation

    if held is not None and task in (None, held.task):
        return replace(held, **given)
    assert task is not None
    kind = RECIPES[task]
    if not issubclass(kind, Segmentation):
        raise ValueError(f"--data must be a segmentation data set for {model}, got {task!r}")
    own = {"backbone": "mit_b1"} if held is None else {name: getattr(held, name) for name in PREPARATION}
    return replace(kind(), **own | given)


class Kept:
    """What `fadeup eval` keeps of single pictures: their statistics, and in a folder alphas and `scores.csv`.

    Statistics go into a journal as they are made, by which an interrupted evaluation goes on: `.fadeup-eval.jsonl` in
    the folder, or beside the JSON file.

    Args:
        arguments: Of the command, with `out` or `json`.
        recipe: Of matting where there is a folder.
        network: Whose pictures they are.
        samples: The test pictures.

    Raises:
        ValueError: The recipe is of another task, the folder holds results and neither `overwrite` nor `resume` is set,
            or those to resume are of another evaluation.
        OSError: The place cannot be written.
    """

    def __init__(self, arguments: argparse.Namespace, recipe: Any, network: Any, samples: Any):
        from fadeup.recipes import Matting

        self.folder, self.recipe, self.count = arguments.out, recipe, len(samples)
        if self.folder and not isinstance(recipe, Matting):
            raise ValueError(
                f"--out must be left out for {recipe.task}, got {self.folder}; fadeup predict writes pictures"
            )
        indices = getattr(samples, "indices", range(len(samples)))
        self.names = [getattr(samples, "dataset", samples).names[index] for index in indices] if self.folder else []
        self.journal = processes.on_main(lambda: self._opened(arguments, network))

    def _opened(self, arguments: argparse.Namespace, network: Any) -> Any:
        """The journal, with the place checked and swept; by one process for all, before any writes there."""
        import fadeup
        from fadeup.journal import Journal, network_digest, sweep

        folder, resume = self.folder, arguments.resume
        path = folder / ".fadeup-eval.jsonl" if folder else arguments.json.with_name(f".{arguments.json.name}.jsonl")
        results = ["scores.csv", *(f"{name}.png" for name in self.names)] if folder else []
        there = [name for name in results if (folder / name).exists()]
        if there and not arguments.overwrite and not (resume and path.exists()):
            raise ValueError(
                f"{folder} must not hold these pictures' results, got {there[0]} and {len(there) - 1} more; use "
                "--overwrite or another folder"
            )
        identity = {"fadeup": fadeup.__version__, "task": self.recipe.task, **asdict(self.recipe)}
        identity |= {"network_digest": network_digest(network), "pictures": self.count}
        journal = Journal(path, identity, resume=resume)
        for place in {path.parent, *((folder / name).parent for name in results)}:
            sweep(place, {path.name, *(Path(name).name for name in results)})
        written(path, lambda path: journal.begin(map(str, range(self.count))))
        return journal

    def finished(self) -> dict[int, dict[str, Any]]:
        """Statistics of the pictures that need not be scored again."""
        import numpy as np

        return {
            int(index): {name: np.array(values) for name, values in told.items()}
            for index, told in self.journal.entries.items()
            if told and (not self.folder or (self.folder / f"{self.names[int(index)]}.png").exists())
        }

    def alpha(self, index: int, prediction: Any) -> None:
        """Write a picture's alpha."""
        from fadeup.checkpoint import write
        from fadeup.data.matting import png

        if not self.folder:
            return
        path = self.folder / f"{self.names[index]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = png(self.recipe.stored(prediction))
        written(path, lambda file: write(file, content))

    def statistics(self, index: int, statistics: dict[str, Any]) -> None:
        """Note a picture as finished."""
        told = {name: values.tolist() for name, values in statistics.items()}
        written(self.journal.path, lambda path: self.journal.add(str(index), told, processes.rank()))

    def scores(self, statistics: dict[str, Any]) -> None:
        """Write `scores.csv`, a line for each picture."""
        from fadeup.checkpoint import write

        if not self.folder:
            return
        names = [metric.name for metric in self.recipe.metrics]
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["name", *names])
        for index, name in enumerate(self.names):
            writer.writerow([name, *(f"{statistics[metric][index, 0]:.9g}" for metric in names)])
        written(self.folder / "scores.csv", lambda file: write(file, table.getvalue().encode()))


def score(
    recipe: Any,
    network: Any,
    samples: Any,
    device: Any,
    workers: int,
    console: Any,
    kept: Kept | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The score of each metric, and of each class where there are classes; a progress bar meanwhile.

    Single pictures' results go to `kept`.
    """
    from rich.progress import MofNCompleteColumn

    from fadeup.engine import evaluate
    from fadeup.recipes import Segmentation

    keeping: dict[str, Any] = {}
    if kept:
        keeping = {"on_prediction": kept.alpha, "on_statistics": kept.statistics, "finished": kept.finished()}
    mine = -(-len(samples) // processes.count())
    with progress_bar(console, MofNCompleteColumn()) as progress:
        bar = progress.add_task("scoring", total=mine)
        statistics = evaluate(
            recipe,
            network,
            samples,
            device=device,
            workers=workers,
            on_samples=lambda n: progress.advance(bar, n),
            **keeping,
        )
    if kept and processes.is_main():
        kept.scores(statistics)
    scores = {metric.name: metric.score(statistics[metric.name]) for metric in recipe.metrics}
    if not isinstance(recipe, Segmentation) or not processes.is_main():
        return scores, []
    return scores, class_scores(recipe.about[0], statistics, _shares(samples))


def class_scores(names: Sequence[str], statistics: dict[str, Any], shares: Sequence[float]) -> list[dict[str, Any]]:
    """Each class's IoU and boundary IoU in %, None where it is absent, and its share of the labelled pixels in %."""
    rows: list[dict[str, Any]] = [{"name": name} for name in names]
    for metric in ("miou", "biou"):
        intersections, unions = statistics[metric].sum(axis=0).reshape(2, -1)
        for row, intersection, union in zip(rows, intersections, unions, strict=True):
            row[metric] = float(100 * intersection / union) if union else None
    return [row | {"share": 100 * share} for row, share in zip(rows, shares, strict=True)]


def _shares(samples: Any) -> list[float]:
    """Each class's part of the labelled pixels; reads the labels alone, which is quick beside the predictions."""
    from torch.utils.data import Subset

    total: Any = samples.dataset.counts(samples.indices) if isinstance(samples, Subset) else samples.counts()  # type: ignore[attr-defined]
    return (total / total.sum().clamp(min=1)).tolist()


def show(recipe: Any, scores: dict[str, float], classes: list[dict[str, Any]], console: Any) -> None:
    """Print the scores, and a table of the classes."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console.print(line(recipe, scores), highlight=False, soft_wrap=True)
    if not classes:
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("class")
    for title in ("IoU %", "boundary IoU %", "pixels %"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in classes:
        values = ("–" if row[name] is None else f"{row[name]:.2f}" for name in ("miou", "biou", "share"))
        table.add_row(escape(row["name"]), *values)
    console.print(table)


def line(recipe: Any, scores: dict[str, float]) -> str:
    """The scores in a line."""
    return ", ".join(f"{metric.label} {scores[metric.name]:.{metric.digits}f}" for metric in recipe.metrics)
