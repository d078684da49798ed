"""Trains a recipe's network and resumes it bit by bit, on one process or many.

Nothing random is carried from step to step: the order of the samples follows from (seed, epoch), augmentation from
(seed, epoch, sample), dropout from (seed, step, process). So a training that was interrupted after any step goes on to
the weights of one that was not, whatever was loaded ahead.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from fadeup.checkpoint import load_checkpoint, save_arrays, save_checkpoint
from fadeup.data.loading import Augmented, Batches, mixed
from fadeup.engine.evaluation import evaluate
from fadeup.recipes.recipe import PRECISIONS, Recipe, Split


class Diverged(RuntimeError):
    """The loss or its gradient is no longer finite."""


@dataclass(frozen=True)
class Setting:
    """How to train, as opposed to what: one process computes the same by any of these but `accumulate` and `device`.

    Args:
        device: `"cpu"`, `"cuda"`, ...; each process of a distributed run takes its own GPU.
        workers: Processes that load and augment; 0 loads in this one.
        accumulate: Parts in which a step's batch is computed one after the other, to save memory. Gradients add up to
            those of the whole batch, but BatchNorm sees the parts.
        checkpoint_seconds: How often the checkpoint is written.
        evaluate_every: After how many steps the test data is scored in between; 0 for never.
        snapshot_steps: After which steps features and gradients of fixed pictures are kept for figures.
        snapshot_layer: Name of the layer whose output they are taken of, as in `model.named_modules()`.
        snapshot_folder: Where they go, a file of kilobytes each.
    """

    device: str = "cpu"
    workers: int = 0
    accumulate: int = 1
    checkpoint_seconds: float = 60.0
    evaluate_every: int = 0
    snapshot_steps: tuple[int, ...] = ()
    snapshot_layer: str = ""
    snapshot_folder: Path | None = None


@dataclass(frozen=True)
class Trained:
    """A network, loss and gradient norm of each step, and the seconds it took, over all interruptions."""

    model: nn.Module
    losses: np.ndarray
    gradient_norms: np.ndarray
    """Euclidean, over all parameters; not finite in float16's steps whose scale was too large, which change nothing."""
    seconds: float


def train(
    recipe: Recipe,
    upsampler: str,
    data: Split,
    *,
    seed: int,
    setting: Setting | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float, float, float], None] = lambda step, loss, rate, gradient_norm: None,
    on_evaluation: Callable[[int, dict[str, float]], None] = lambda step, scores: None,
) -> Trained:
    """Train the recipe's network from its start, or go on from its checkpoint.

    The seed fixes the start of all layers outside the upsamplers, the order of the pictures and their augmentation,
    whatever the upsampler: rows of one seed differ by their upsampler alone. Under `torchrun` the processes share
    every batch; the loss is the mean over all of it, so that a network without BatchNorm learns the same as on one.

    After Ctrl-C or SIGTERM the step is finished, the checkpoint written and KeyboardInterrupt raised; a second one
    stops at once.

    Args:
        recipe: Network, loss, optimizer, epochs.
        upsampler: Name, as in `fadeup.build_upsampler`.
        data: Loaded by `recipe.data()`.
        seed: Of weights, order, augmentation and dropout; 0 or more.
        setting: How to train.
        checkpoint: File to keep the state in; where it exists, training goes on from it.
        on_step: Called on the main process after each step with the number of finished steps, its loss, the next
            learning rate and the gradient's norm; also once at the start of a resumed training, with the last ones.
        on_evaluation: Called on the main process with the number of finished steps and the score of each metric.

    Raises:
        Diverged: The loss or its gradient is not finite; the checkpoint is of a step before that.
        ValueError: The checkpoint is damaged or of another training; the seed is negative; a snapshot's layer is
            unknown.
        OSError: The checkpoint cannot be written; the last one is kept.
    """
    training = Training(recipe, upsampler, data, seed, setting or Setting())
    if checkpoint is not None and checkpoint.exists():
        training.load(load_checkpoint(checkpoint, training.identity))
        if training.main and training.losses:
            on_step(*training.progress())

    def save() -> None:
        if checkpoint is not None and training.main:
            save_checkpoint(checkpoint, training.identity, training.state())

    saved = time.monotonic()
    with interruption() as stop, living_workers():
        for inputs, targets in training.batches():
            stopping = training.step(inputs, targets, stop.is_set())
            if training.main:
                on_step(*training.progress())
            if training.evaluates():
                scores = training.scores()
                if training.main:
                    on_evaluation(training.steps_done, scores)
            if stopping or (training.alone and stop.is_set()):
                save()
                raise KeyboardInterrupt
            if time.monotonic() - saved > training.setting.checkpoint_seconds:
                save()
                saved = time.monotonic()
    save()
    losses, norms = (np.array(values, np.float32) for values in (training.losses, training.gradient_norms))
    return Trained(training.finish(), losses, norms, training.seconds)


class Training:
    """The state of a training, and a step of it. See `train`."""

    def __init__(self, recipe: Recipe, upsampler: str, data: Split, seed: int, setting: Setting):
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        if not 1 <= setting.accumulate <= recipe.batch_size:
            raise ValueError(f"accumulate must be from 1 to the batch of {recipe.batch_size}, got {setting.accumulate}")
        if not len(data.train):  # type: ignore[arg-type]
            raise ValueError("training data must hold a sample or more, got none")
        self.recipe, self.upsampler, self.data, self.seed, self.setting = recipe, upsampler, data, seed, setting
        self.accelerator = _accelerator(recipe.precision, setting.device)
        self.main, self.alone = self.accelerator.is_main_process, self.accelerator.num_processes == 1
        self.steps_done, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.identity = {"task": recipe.task, **asdict(recipe), "upsampler": upsampler, "seed": seed}
        self.total = recipe.steps(data)
        torch.manual_seed(seed)
        self.network = recipe.model(upsampler)
        self.network.to(self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._check_snapshots()
        optimizer, self.scheduler = recipe.optimizer(self.network, self.total)
        average = get_ema_multi_avg_fn(recipe.ema)
        self.average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True) if recipe.ema else None
        self.model = self.accelerator.prepare_model(self.network.train())
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    @property
    def rate(self) -> float:
        """The learning rate of the first group of parameters."""
        return self.optimizer.param_groups[0]["lr"]

    def progress(self) -> tuple[int, float, float, float]:
        """Finished steps, the last one's loss, the next learning rate and the last gradient's norm."""
        return self.steps_done, self.losses[-1], self.rate, self.gradient_norms[-1]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the batches that are left."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        samples = len(self.data.train)  # type: ignore[arg-type]
        keys = Batches(samples, self.recipe.batch_size, self.seed, self.total, self.steps_done, rank, world)
        augmented = Augmented(self.data.train, self.recipe.augment, self.seed)
        pinned = self.accelerator.device.type == "cuda"
        yield from DataLoader(augmented, batch_sampler=keys, num_workers=self.setting.workers, pin_memory=pinned)

    def step(self, inputs: Tensor, targets: Tensor, stopping: bool) -> bool:
        """One step of the optimizer; whether any process is asked to stop after it."""
        started = time.perf_counter()
        accelerator = self.accelerator
        torch.manual_seed(mixed(self.seed, self.steps_done, accelerator.process_index))
        device, parts = accelerator.device, self.setting.accumulate
        pairs = list(zip(inputs.to(device).chunk(parts), targets.to(device).chunk(parts), strict=True))
        terms = [self.recipe.terms(target) for _, target in pairs]
        total, stops = self._sum([float(sum(terms)), float(stopping)])
        self.optimizer.zero_grad()
        value = 0.0
        for place, ((part, target), count) in enumerate(zip(pairs, terms, strict=True), start=1):
            with accelerator.no_sync(self.model) if place < len(pairs) else nullcontext():
                loss = self.recipe.loss(self.model(part), target)
                share = float(count) / total if total else 0.0
                value += share * loss.item()
                # DDP averages over processes what should be summed.
                weight = share * accelerator.num_processes
                accelerator.backward(loss if weight == 1 else loss * weight)
        (value,) = self._sum([value])
        if not math.isfinite(value):
            raise Diverged(self._divergence("loss", value))
        norm = self._gradient_norm()
        if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler passes such a step over
            raise Diverged(self._divergence("the gradient's norm", norm))
        self.optimizer.step()
        if not getattr(self.optimizer, "step_was_skipped", False):  # float16, when its scale was too large
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.losses.append(value)
        self.gradient_norms.append(norm)
        self.steps_done += 1
        self.seconds += time.perf_counter() - started
        if self.main and self.steps_done in self.setting.snapshot_steps:
            self._snapshot()
        return stops > 0

    def evaluates(self) -> bool:
        """Whether the test data is to be scored after this step; the last one's score is the caller's."""
        every = self.setting.evaluate_every
        return every > 0 and self.steps_done % every == 0 and self.steps_done < self.total

    def scores(self) -> dict[str, float]:
        """The score of each metric on the test data as things stand."""
        model, device = self.result(), self.accelerator.device
        statistics = evaluate(self.recipe, model, self.data.test, device=device, workers=self.setting.workers)
        return {metric.name: metric.score(statistics[metric.name]) for metric in self.recipe.metrics}

    def result(self) -> nn.Module:
        """The network, or its moving average; with the buffers of the first process in all of them."""
        if not self.alone:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)
        return self.network if self.average is None else self.average.module

    def finish(self) -> nn.Module:
        """The trained network, no longer wrapped for its precision."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return self.result()

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        scaler, average = self.accelerator.scaler, self.average
        return {
            "steps_done": self.steps_done,
            "seconds": self.seconds,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "gradient_norms": torch.tensor(self.gradient_norms, dtype=torch.float64),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if average is None else average.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.steps_done, self.seconds, self.losses = state["steps_done"], state["seconds"], state["losses"].tolist()
        unknown = torch.full((self.steps_done,), math.nan)  # an older checkpoint keeps none
        self.gradient_norms = state.get("gradient_norms", unknown).tolist()

    def _sum(self, values: list[float]) -> list[float]:
        """Sums over processes, in one exchange."""
        if self.alone:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def _gradient_norm(self) -> float:
        """Of the whole gradient, which processes have summed by now, without a scaler's factor."""
        gradients = [x.grad for x in self.network.parameters() if x.grad is not None]
        scaler = self.accelerator.scaler
        return float(nn.utils.get_total_norm(gradients)) / (1.0 if scaler is None else scaler.get_scale())

    def _divergence(self, name: str, value: float) -> str:
        per_epoch = math.ceil(len(self.data.train) / self.recipe.batch_size)  # type: ignore[arg-type]
        epoch, step = divmod(self.steps_done, per_epoch)
        return (
            f"{name} must be finite, got {value} with {self.upsampler!r}, seed {self.seed}, epoch {epoch + 1}, "
            f"step {step + 1}; lower the learning rate"
        )

    def _check_snapshots(self) -> None:
        layer, names = self.setting.snapshot_layer, [name for name, _ in self.network.named_modules() if name]
        if self.setting.snapshot_steps and (layer not in names or self.setting.snapshot_folder is None):
            few = ", ".join(names[-8:])
            raise ValueError(f"snapshot_layer must be a layer of the network, such as {few}, got {layer!r}")

    def _snapshot(self) -> None:
        """Keep the layer's mean feature and its gradients' positive part, summed over channels, of fixed pictures."""
        assert self.setting.snapshot_folder is not None
        network, kept, arrays = self.network, [], {}
        module = network.get_submodule(self.setting.snapshot_layer)
        hook = module.register_forward_hook(lambda module, inputs, output: kept.append(output))
        network.eval()  # running statistics must not learn from the test pictures
        try:
            for index in self.recipe.show(self.data)[:4]:
                inputs, target = (
                    x[None].to(self.accelerator.device) for x in self.recipe.prepare(self.data.test[index])
                )
                kept.clear()
                loss = self.recipe.loss(network(inputs), target)
                (gradient,) = torch.autograd.grad(loss, kept[-1:])
                arrays[f"feature.{index}"] = kept[-1].detach().mean(dim=1)[0].float().cpu().numpy()
                arrays[f"gradient.{index}"] = gradient.relu().sum(dim=1)[0].float().cpu().numpy()
        finally:
            hook.remove()
            network.train()
        self.setting.snapshot_folder.mkdir(parents=True, exist_ok=True)
        save_arrays(self.setting.snapshot_folder / f"step{self.steps_done:06d}.npz", arrays)


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that what is under way can be finished; a second one interrupts at once.

    In another thread than the main one, where signals cannot be caught, it is never set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def living_workers() -> Iterator[None]:
    """Say what helps where a process that loads data has been ended: torch raises that wherever it is just then."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        rule = "workers must live as long as the training; the system ends them where memory is short: take fewer"
        raise RuntimeError(f"{rule}, got {error}") from error


def _accelerator(precision: str, device: str) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float16" and device == "cpu":
        raise ValueError("precision must be float32 or bfloat16 on the CPU, got 'float16'")
    # One process may train by several recipes, but Accelerate keeps the first precision it was given.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    mixed = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision]
    return Accelerator(mixed_precision=mixed, cpu=device == "cpu")
