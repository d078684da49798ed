"""`fadeup train`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from fadeup.cli import processes
from fadeup.cli.evaluate import line, score, show
from fadeup.cli.options import (
    add_machine_options,
    add_recipe_options,
    check_device,
    chosen_recipe,
    natural,
    positive,
    run_folder,
    written,
)


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "train",
        help="train one network, with checkpoints, on one process or many",
        description="Trains a network with one upsampler and keeps it in a run folder: config.json, checkpoint.pt, "
        "model.safetensors, results.json, tensorboard/. Spreads over processes under torchrun: "
        "torchrun --nproc-per-node N -m fadeup train TASK ...",
    )
    parser.add_argument(
        "task",
        metavar="TASK",
        help="landcover, weizmann, camvid, ade20k, sunrgbd, cutouts, composition1k, folder, reconstruction or "
        "reconstruction-colour",
    )
    parser.add_argument("--upsampler", default="fade", metavar="NAME", help="default: fade")
    parser.add_argument("--seed", type=natural, default=0, help="default: 0")
    add_recipe_options(parser)
    parser.add_argument("--name", help="of the run (default: TASK-UPSAMPLER-seedN)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--resume", action="store_true", help="go on with a run from its checkpoint")
    add_machine_options(parser)
    parser.add_argument("--accumulate", type=positive, default=1, metavar="N", help="compute a batch in so many parts")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=60.0, metavar="S", help="time between checkpoints (default: 60)"
    )
    parser.add_argument("--evaluate-every", type=positive, default=0, metavar="STEPS", help="score meanwhile too")
    parser.add_argument(
        "--snapshot-steps", type=positive, nargs="+", default=(), metavar="STEP", help="keep features and gradients"
    )
    parser.add_argument("--snapshot-layer", default="", metavar="NAME", help="of this layer")
    parser.add_argument("--no-tensorboard", action="store_true", help="write no TensorBoard files")
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> None:
    """Check, train, score, keep."""
    from rich.console import Console

    check_device(arguments.device)
    processes.join(arguments.device)
    recipe = processes.on_main(lambda: _checked_recipe(arguments))
    data = recipe.data()  # before the folder, so that missing data leaves none behind
    path = run_folder(arguments, f"{arguments.task}-{arguments.upsampler}-seed{arguments.seed}")
    finished = processes.on_main(lambda: _open(path, recipe, arguments))
    console = Console(quiet=not processes.is_main())
    if finished:
        told = f"{path} is finished: {line(recipe, finished['scores'])}; choose another --name to train again"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        return processes.leave()
    arguments.hint = f"; what is done is kept in {path}: the same command with --resume goes on"
    console.print(
        f"{recipe.trained}; {arguments.upsampler}, seed {arguments.seed}", markup=False, highlight=False, soft_wrap=True
    )
    with Watch(recipe, recipe.steps(data), path, console, tensorboard=not arguments.no_tensorboard) as watch:
        trained = _trained(arguments, recipe, data, path, watch)
        device = next(trained.model.parameters()).device
        scores, classes = score(recipe, trained.model, data.test, device, arguments.workers, console)
        watch.record(len(trained.losses), scores)
    show(recipe, scores, classes, console)
    told = passed_over(data.train)
    if told:
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    if processes.is_main():
        _keep(path, recipe, arguments, trained, scores, classes)
    console.print(f"Model: {path / 'model.safetensors'}", markup=False, highlight=False, soft_wrap=True)
    processes.leave()


def _checked_recipe(arguments: argparse.Namespace) -> Any:
    from fadeup.upsamplers import resolve

    if not arguments.no_tensorboard:
        import torch.utils.tensorboard  # noqa: F401 - where it is missing that is said now
    resolve(arguments.upsampler)
    if not arguments.checkpoint_seconds >= 0:
        raise ValueError(f"--checkpoint-seconds must be 0 or more, got {arguments.checkpoint_seconds}")
    return chosen_recipe(arguments.task, arguments)


def _open(path: Path, recipe: Any, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Open the run folder; its results where it is finished."""
    from fadeup.compare import RunFolder
    from fadeup.reading import read_json

    RunFolder(path, recipe, resume=arguments.resume, upsampler=arguments.upsampler, seed=arguments.seed)
    results = path / "results.json"
    if not results.exists() or not (path / "model.safetensors").exists():
        return None
    try:
        held = read_json(results)
        if not {metric.name for metric in recipe.metrics} <= held["scores"].keys():
            raise ValueError("no score of each metric")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"{results} must be JSON with the network's scores, got {error}; delete it to score the network again"
        raise ValueError(problem) from error
    return held


def _trained(arguments: argparse.Namespace, recipe: Any, data: Any, path: Path, watch: Watch) -> Any:
    """The trained network; where training is refused before its first step, no run folder stays behind."""
    from fadeup import engine

    try:
        trained = engine.train(
            recipe,
            arguments.upsampler,
            data,
            seed=arguments.seed,
            setting=_setting(arguments, path),
            checkpoint=path / "checkpoint.pt",
            on_step=watch.on_step,
            on_evaluation=watch.on_evaluation,
        )
    except ValueError:
        if processes.is_main() and [entry.name for entry in path.iterdir()] == ["config.json"]:
            (path / "config.json").unlink()
            path.rmdir()
        raise
    watch.progress.stop()
    return trained


def _setting(arguments: argparse.Namespace, path: Path) -> Any:
    from fadeup.engine import Setting

    return Setting(
        device=arguments.device,
        workers=arguments.workers,
        accumulate=arguments.accumulate,
        checkpoint_seconds=arguments.checkpoint_seconds,
        evaluate_every=arguments.evaluate_every,
        snapshot_steps=tuple(arguments.snapshot_steps),
        snapshot_layer=arguments.snapshot_layer,
        snapshot_folder=path / "snapshots",
    )


def _keep(
    path: Path,
    recipe: Any,
    arguments: argparse.Namespace,
    trained: Any,
    scores: dict[str, float],
    classes: list[dict[str, Any]],
) -> None:
    """Write the weights with all that is needed to use them, then the results, which mark the run as finished."""
    from fadeup.bench import environment
    from fadeup.checkpoint import write
    from fadeup.predict import save_trained

    seed, upsampler, about = arguments.seed, arguments.upsampler, {}
    file = path / "model.safetensors"
    save = lambda file: save_trained(  # noqa: E731
        file, recipe, trained.model, upsampler=upsampler, seed=seed, scores=scores
    )
    written(file, lambda file: about.update(save(file)))
    results = about | {
        "score": "last step",
        "trained": recipe.trained,
        "weights": getattr(recipe, "weights", None),
        "classes": classes,
        "steps": len(trained.losses),
        "final_loss": float(trained.losses[-1]),
        "seconds": trained.seconds,
        "processes": processes.count(),
        "environment": environment(),
    }
    written(path / "results.json", lambda file: write(file, json.dumps(results, indent=2).encode()))


def passed_over(samples: Any) -> str:
    """The files that a training could not read, in words; empty where there are none."""
    files = samples.skipped() if hasattr(samples, "skipped") else []
    few = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return f"{len(files)} file(s) could not be read and were passed over: {few}" if files else ""


class Watch:
    """Shows how a training goes on, and writes it down for TensorBoard: its main process alone calls it.

    Args:
        recipe: What is trained.
        steps: Of the whole training.
        path: Run folder.
        console: To show it on.
        tensorboard: Whether to write it down.
    """

    def __init__(self, recipe: Any, steps: int, path: Path, console: Any, *, tensorboard: bool):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.recipe, self.steps, self.path, self.console, self.tensorboard = recipe, steps, path, console, tensorboard
        self.resumed = (path / "checkpoint.pt").exists()
        self.writer: Any = None
        self.first, self.started = -1, 0.0
        self.progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            expand=True,
        )
        self.bar = self.progress.add_task("starting", total=steps)

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()
        if self.writer is not None:
            self.writer.close()

    def on_step(self, step: int, loss: float, rate: float, gradient_norm: float) -> None:
        """As in `fadeup.engine.train`."""
        if self.resumed:  # the state that it came back with, which has been written down
            self.resumed = False
            self.progress.reset(self.bar, completed=step, description="going on")
            return self._open(step + 1)
        self._open(step)
        if self.first < 0:
            self.first, self.started = step, time.monotonic()
        speed = (step - self.first) / max(1e-9, time.monotonic() - self.started)
        told = f"loss {loss:.4f}  rate {rate:.2e}  {speed:.2f} steps/s"
        self.progress.update(self.bar, completed=step, description=told)
        every = max(1, self.steps // 10)
        if not self.console.is_terminal and step % every == 0:
            self.console.print(f"step {step} of {self.steps}: {told}", highlight=False, soft_wrap=True)
        if self.writer is not None:
            self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("learning rate", rate, step)
            self.writer.add_scalar("gradient norm", gradient_norm, step)

    def on_evaluation(self, step: int, scores: dict[str, float]) -> None:
        """As in `fadeup.engine.train`."""
        self.console.print(f"step {step}: {line(self.recipe, scores)}", highlight=False, soft_wrap=True)
        self.record(step, scores)

    def record(self, step: int, scores: dict[str, float]) -> None:
        """Write down the scores after a step."""
        if self.writer is not None:
            for name, value in scores.items():
                self.writer.add_scalar(name, value, step)

    def _open(self, step: int) -> None:
        """Start writing at a step: what was written of it and later, before an interruption, is shown no more."""
        if self.writer is None and self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step, flush_secs=5)
