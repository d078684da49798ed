"""The main job: several upsamplers, the same data, the same seeds, one table.

A run is a folder: `config.json` says which recipe it belongs to, `rows/` holds a file per finished pair of upsampler
and seed, `results.json` and `report.html` are written from the rows. A row is written whole or not at all, so that an
interrupted run goes on with the rows that are missing, and with the one under way from its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fadeup.bench import environment
from fadeup.checkpoint import differences, save_arrays, write
from fadeup.cost import network_cost
from fadeup.engine import Setting, evaluate, predict, train
from fadeup.journal import sweep
from fadeup.predict import save_trained
from fadeup.reading import parsed, read_arrays, read_json
from fadeup.recipes.recipe import Metric, Recipe, Split
from fadeup.upsamplers import resolve

RESAMPLES = 2000


@dataclass(frozen=True)
class TrainedRow:
    """One upsampler, one seed, trained and scored."""

    upsampler: str
    seed: int
    seconds: float
    parameters: int
    macs: int
    losses: np.ndarray
    """Training loss, `(steps,)`."""
    statistics: dict[str, np.ndarray]
    """Per metric, `(images, k)`."""
    pictures: np.ndarray
    errors: np.ndarray

    def score(self, metric: Metric) -> float:
        """The metric over the test data."""
        return metric.score(self.statistics[metric.name])


@dataclass(frozen=True)
class Difference:
    """A metric's difference to the baseline, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    verdict: str
    """`"win"` or `"loss"` where the interval excludes 0, else `"even"`."""


@dataclass(frozen=True)
class Summary:
    """A line of the table."""

    upsampler: str
    note: str
    scores: dict[str, tuple[float, float | None]]
    """Per metric, mean and standard deviation over seeds; None for one seed."""
    differences: dict[str, Difference]
    """Per metric; empty for the baseline."""
    parameters: int
    macs: int
    seconds: float
    seeds: int


class RunFolder:
    """`runs/<name>/`: opened for one configuration, never for another.

    Args:
        path: Of the folder.
        recipe: What is trained in it.
        resume: Whether to go on with what it holds.
        **identity: What else the run belongs to, such as the upsampler of a single training.

    Raises:
        FileExistsError: The folder holds a run and `resume` is not set.
        ValueError: It belongs to another configuration, or holds something else.
        OSError: It cannot be written; the message says which folder.
    """

    def __init__(self, path: Path, recipe: Recipe, *, resume: bool = False, **identity: Any):
        self.path, self.recipe = path, recipe
        config = json.loads(json.dumps({"task": recipe.task, **asdict(recipe), **identity}))
        if (path / "config.json").exists():
            self._check_config(config, resume)
        elif path.exists() and not _is_new(path):
            raise ValueError(f"{path} must be a new or empty folder, or one of an earlier run; choose another --name")
        try:
            path.mkdir(parents=True, exist_ok=True)
            for folder in (path, *(path / name for name in ("rows", "checkpoints", "weights", "snapshots"))):
                sweep(folder)
            write(path / "config.json", json.dumps(config, indent=2).encode())
        except OSError as error:
            raise OSError(f"{path} must be a folder that can be written, got {error}; choose another --out") from error

    def _check_config(self, config: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise FileExistsError(f"{self.path} must be new, got a run; use --resume to go on or choose another --name")
        try:
            held = read_json(self.path / "config.json")
        except ValueError as error:
            raise ValueError(f"{self.path / 'config.json'} must be JSON, got {error}; choose another --name") from error
        if not isinstance(held, dict):
            raise ValueError(
                f"{self.path / 'config.json'} must hold a configuration, got {held!r:.80}; choose another --name"
            )
        if differing := differences(held, config):
            raise ValueError(
                f"{self.path} must hold the same configuration to resume, got {differing}; "
                "repeat its options or choose another --name"
            )

    def row_path(self, upsampler: str, seed: int) -> Path:
        """Where that row is, or will be."""
        return self.path / "rows" / f"{upsampler}-seed{seed}.npz"

    def checkpoint_path(self, upsampler: str, seed: int) -> Path:
        """Where the state of that row's training is while it lasts."""
        return self.path / "checkpoints" / f"{upsampler}-seed{seed}.pt"

    def weights_path(self, upsampler: str, seed: int) -> Path:
        """Where that row's network is, where it is kept."""
        return self.path / "weights" / f"{upsampler}-seed{seed}.safetensors"

    def load(self, upsampler: str, seed: int) -> TrainedRow | None:
        """A finished row, or None."""
        path = self.row_path(upsampler, seed)
        if not path.exists():
            return None
        try:
            file = read_arrays(path)
            statistics = {metric.name: file[f"statistics.{metric.name}"] for metric in self.recipe.metrics}
            arrays: dict[str, Any] = {name: file[name] for name in ("losses", "pictures", "errors")}
            meta: dict[str, Any] = parsed(str(file["meta"]))
            row = TrainedRow(**meta, **arrays, statistics=statistics)
            _check_row(row, upsampler, seed)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must be a finished row, got {error}; delete it to run the row again") from error
        return row

    def save(self, row: TrainedRow) -> None:
        """Write a finished row whole; the checkpoint of its training is no longer needed."""
        meta = {key: getattr(row, key) for key in ("upsampler", "seed", "seconds", "parameters", "macs")}
        arrays: dict[str, Any] = {f"statistics.{name}": values for name, values in row.statistics.items()}
        arrays |= {"losses": row.losses, "pictures": row.pictures, "errors": row.errors}
        path = self.row_path(row.upsampler, row.seed)
        path.parent.mkdir(exist_ok=True)
        save_arrays(path, {"meta": np.array(json.dumps(meta)), **arrays})
        self.checkpoint_path(row.upsampler, row.seed).unlink(missing_ok=True)


def _check_row(row: TrainedRow, upsampler: str, seed: int) -> None:
    """Refuse what the table and the report could not be made of."""
    if (row.upsampler, row.seed) != (upsampler, seed):
        raise ValueError(f"upsampler {row.upsampler!r:.200}, seed {row.seed!r:.200}")
    for name in ("seconds", "parameters", "macs"):
        if not isinstance(getattr(row, name), int | float):
            raise ValueError(f"{getattr(row, name)!r:.80} as {name}")
    statistics = list(row.statistics.values())
    scored = {len(values) if values.ndim == 2 and values.size else 0 for values in statistics}
    ndims = row.losses.ndim, row.pictures.ndim, row.errors.ndim
    kinds = [array.dtype.kind for array in (row.losses, row.pictures, row.errors, *statistics)]
    if (
        len(scored) != 1
        or 0 in scored
        or ndims[0] != 1
        or not row.losses.size
        or ndims[1] not in (3, 4)
        or ndims[2] != 3
    ):
        raise ValueError("arrays of other shapes")
    if not set(kinds) <= set("fiub"):
        raise ValueError("arrays that are no numbers")


def _is_new(path: Path) -> bool:
    """Whether a folder holds nothing, or only what `write` leaves when it is killed."""
    return path.is_dir() and all(entry.name.endswith(".part") for entry in path.iterdir())


def run_row(
    recipe: Recipe,
    upsampler: str,
    seed: int,
    data: Split,
    *,
    setting: Setting | None = None,
    checkpoint: Path | None = None,
    weights: Path | None = None,
    on_step: Callable[[int, float, float, float], None] = lambda step, loss, rate, gradient_norm: None,
) -> TrainedRow:
    """Train and score one upsampler with one seed; the score is the last epoch's, never the best on the test data.

    The network is kept in the file `weights`, where one is given.
    """
    setting = setting or Setting()
    trained = train(recipe, upsampler, data, seed=seed, setting=setting, checkpoint=checkpoint, on_step=on_step)
    model, device, workers = trained.model, setting.device, setting.workers
    statistics = evaluate(recipe, model, data.test, device=device, workers=workers)
    if weights is not None:
        weights.parent.mkdir(parents=True, exist_ok=True)
        scores = {metric.name: metric.score(statistics[metric.name]) for metric in recipe.metrics}
        save_trained(weights, recipe, model, upsampler=upsampler, seed=seed, scores=scores)
    shown = recipe.show(data)
    predictions = predict(recipe, model, data.test, shown, device=device)
    samples = [recipe.prepare(data.test[index]) for index in shown]
    cost = network_cost(model, samples[0][0][None].to(device))
    return TrainedRow(
        upsampler=upsampler,
        seed=seed,
        seconds=trained.seconds,
        parameters=cost.parameters,
        macs=cost.macs,
        losses=trained.losses,
        statistics=statistics,
        pictures=np.concatenate([recipe.picture(prediction[None]) for prediction in predictions]),
        errors=np.concatenate(
            [
                recipe.error(prediction[None], target[None]).astype(np.float16)
                for prediction, (_, target) in zip(predictions, samples, strict=True)
            ]
        ),
    )


def check_rows(upsamplers: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise unless upsamplers are known, seeds 0 or more, and neither list is empty or names anything twice."""
    for name in upsamplers:
        resolve(name)
    if min(seeds, default=0) < 0:
        raise ValueError(f"seeds must be 0 or more, got {min(seeds)}")
    for name, values in (("upsamplers", upsamplers), ("seeds", seeds)):
        if len(set(values)) != len(values) or not values:
            raise ValueError(f"{name} must be different from each other and at least one, got {list(values)}")


def compare(
    recipe: Recipe,
    data: Split,
    upsamplers: Sequence[str],
    seeds: Sequence[int],
    folder: RunFolder,
    *,
    setting: Setting | None = None,
    keep_weights: bool = False,
    on_row: Callable[[TrainedRow, bool], None] = lambda row, resumed: None,
    on_start: Callable[[str, int, int], None] = lambda upsampler, seed, steps: None,
    on_step: Callable[[int, float, float, float], None] = lambda step, loss, rate, gradient_norm: None,
) -> list[TrainedRow]:
    """Train every upsampler with every seed, seed by seed, taking finished rows from the folder.

    Args:
        recipe: What to train, and how.
        data: Loaded by `recipe.data()`.
        upsamplers: Keys or aliases; checked before anything is trained.
        seeds: One row each.
        folder: Where rows are kept.
        setting: How to train.
        keep_weights: Whether to keep each row's network in the folder.
        on_row: Called with each row, and whether it was there already.
        on_start: Called with upsampler, seed and number of steps before a row is trained.
        on_step: As in `fadeup.engine.train`.

    Raises:
        ValueError: An upsampler is unknown, or is twice in the list.
    """
    check_rows(upsamplers, seeds)
    rows = []
    for seed in seeds:
        for upsampler in upsamplers:
            row = folder.load(upsampler, seed)
            resumed = row is not None
            if resumed:  # a process killed right after it wrote the row has left its checkpoint
                folder.checkpoint_path(upsampler, seed).unlink(missing_ok=True)
            if row is None:
                on_start(upsampler, seed, recipe.steps(data))
                path = folder.checkpoint_path(upsampler, seed)
                weights = folder.weights_path(upsampler, seed) if keep_weights else None
                row = run_row(
                    recipe, upsampler, seed, data, setting=setting, checkpoint=path, weights=weights, on_step=on_step
                )
                folder.save(row)
            rows.append(row)
            on_row(row, resumed)
    return rows


def bootstrap(metric: Metric, rows: Sequence[TrainedRow], baseline: Sequence[TrainedRow]) -> Difference:
    """Difference of a metric to the baseline, with the 95 % interval of a paired bootstrap over images and seeds.

    Each of 2000 resamples draws images and seeds with replacement, the same for both. With one seed the interval is
    over images only. Rows and baseline must be of the same seeds in the same order.
    """
    rng = np.random.default_rng(0)
    ours, theirs = (np.stack([row.statistics[metric.name] for row in group]) for group in (rows, baseline))
    seeds, images, _ = ours.shape
    chosen_seeds = rng.integers(seeds, size=(RESAMPLES, seeds))
    differences = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 100):  # in parts, for ten thousand images make a large matrix
        weights = rng.multinomial(images, np.full(images, 1 / images), size=100) / images
        delta = score_difference(metric, weights, ours, theirs)
        part = slice(start, start + 100)
        differences[part] = np.take_along_axis(delta, chosen_seeds[part], axis=1).mean(axis=1)
    low, high = np.percentile(differences, (2.5, 97.5))
    mean = float(score_difference(metric, np.full((1, images), 1 / images), ours, theirs).mean())
    sign = 1 if metric.better == "higher" else -1
    verdict = "win" if min(sign * low, sign * high) > 0 else "loss" if max(sign * low, sign * high) < 0 else "even"
    return Difference(mean, float(low), float(high), verdict)


def score_difference(metric: Metric, weights: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Difference of scores with images weighed, `(R, images)` and `(seeds, images, k)` to `(R, seeds)`."""
    scores = [
        metric.reduce(np.einsum("ri,sik->rsk", weights, statistics, optimize=True)) for statistics in (ours, theirs)
    ]
    return scores[0] - scores[1]


def summarize(recipe: Recipe, rows: Sequence[TrainedRow], baseline: str) -> list[Summary]:
    """The table: a line per upsampler, the best by the recipe's first metric on top.

    Scores are means over all seeds of an upsampler; differences use the seeds that it shares with the baseline.
    """
    by_upsampler: dict[str, dict[int, TrainedRow]] = {}
    for row in rows:
        by_upsampler.setdefault(row.upsampler, {})[row.seed] = row
    base = by_upsampler.get(baseline, {})
    table = []
    for name, group in by_upsampler.items():
        shared = sorted(group.keys() & base.keys())
        differences = {}
        if name != baseline and shared:
            pair = [group[seed] for seed in shared], [base[seed] for seed in shared]
            differences = {metric.name: bootstrap(metric, *pair) for metric in recipe.metrics}
        first = next(iter(group.values()))
        table.append(
            Summary(
                upsampler=name,
                note=recipe.notes.get(name, ""),
                scores={
                    metric.name: spread([row.score(metric) for row in group.values()]) for metric in recipe.metrics
                },
                differences=differences,
                parameters=first.parameters,
                macs=first.macs,
                seconds=float(np.mean([row.seconds for row in group.values()])),
                seeds=len(group),
            )
        )
    metric = recipe.metrics[0]
    sign = -1 if metric.better == "higher" else 1
    return sorted(table, key=lambda line: sign * line.scores[metric.name][0])


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of a sample of more than one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def results(recipe: Recipe, rows: Sequence[TrainedRow], table: Sequence[Summary], baseline: str) -> dict[str, Any]:
    """All of a run as plain data, for `results.json`."""
    return {
        "task": recipe.task,
        "config": asdict(recipe),
        "baseline": baseline,
        "trained": recipe.trained,
        "score": "last step",
        "interval": f"95 % interval of a paired bootstrap over images and seeds, {RESAMPLES} resamples",
        "table": [asdict(line) for line in table],
        "rows": [
            {
                "upsampler": row.upsampler,
                "seed": row.seed,
                "seconds": row.seconds,
                "final_loss": float(row.losses[-1]),
                **{metric.name: row.score(metric) for metric in recipe.metrics},
            }
            for row in rows
        ],
        "paper": {"protocol": recipe.paper_protocol, "scores": recipe.paper},
        "environment": environment(),
    }
