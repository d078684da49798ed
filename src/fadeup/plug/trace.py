"""Looks for the resizes of a network that somebody else wrote, and for the maps that could guide an upsampler there.

One example runs through the network under a `TorchFunctionMode` that follows what each tensor is made of, with hooks
that follow which module is running. Every tensor is kept until the search ends, so that its identity means something.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fadeup.plug.host import RESIZES, Path
from fadeup.upsamplers import Upsampler

POOLING = ("adaptive", "mean", "amax", "lp_pool")
"""What the names of functions that pool a whole map have in them."""


@dataclass(eq=False)
class Frame:
    """One call of a module."""

    name: str
    module: nn.Module
    parent: Frame | None
    arguments: dict[Path, Tensor]
    results: dict[Path, Tensor] = field(default_factory=dict)

    def chain(self) -> list[Frame]:
        """The calls that this one is inside of, the whole network's first, itself last."""
        return [*(self.parent.chain() if self.parent else []), self]


@dataclass(frozen=True)
class Fact:
    """What a tensor is made of; it holds the tensor, so that no other gets its id."""

    tensor: Tensor
    raw: bool = False
    """The image, or made of it without any weights."""
    pooled: bool = False
    """Made of maps pooled to a point or a fixed grid, and of nothing else."""


@dataclass(eq=False)
class Resize:
    """A call that changed a map's size."""

    frame: Frame
    kind: str
    source: Tensor
    result: Tensor
    before: int
    """How many calls of modules had ended."""
    number: int = 0
    """Of the resizes that run directly in this module, counted over the whole network's pass."""
    alone: bool = True
    """Whether it is the only one in its module."""

    @property
    def where(self) -> str:
        """The module in which it happens, and where there are several the number of it."""
        name = self.frame.name or "the network itself"
        return name if self.alone else f"{name}:{self.number}"


@dataclass(frozen=True)
class Source:
    """Where the guide of a resize comes from: an argument of the scope, or what a module inside of it returns."""

    scope: Frame
    path: Path
    producer: Frame | None
    """The call that made it; None where it is an argument of the scope."""
    tensor: Tensor
    label: str


class Trace(TorchFunctionMode):
    """A network's pass over one example: its resizes, its calls of modules, what its tensors are made of."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__()
        self.facts: dict[int, Fact] = {}
        self.consumers: dict[int, list[tuple[bool, int]]] = {}
        self.resizes: list[Resize] = []
        self.finished: list[Frame] = []
        self.top: Frame | None = None
        for x in tensors((args, kwargs)).values():
            self.facts[id(x)] = Fact(x, raw=True)
        self._run(model, args, kwargs)
        for resize in self.resizes:
            same = [other for other in self.resizes if other.frame.name == resize.frame.name]
            resize.number, resize.alone = same.index(resize), len(same) == 1

    def _run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = {id(module): name for name, module in model.named_modules()}

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = {path[1:]: x for path, x in tensors((args, kwargs)).items()}
            self.top = Frame(names[id(module)], module, self.top, given)

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            assert self.top is not None
            self.top.results = tensors(out)
            self.finished.append(self.top)
            self.top = self.top.parent

        handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in model.modules()]
        handles += [m.register_forward_hook(leave, with_kwargs=True) for m in model.modules()]
        try:
            with rehearsing(model), self:
                model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors((args, kwargs)).values())
        shapes = [tuple(x.shape) for x in given]
        out = func(*args, **kwargs)
        made = list(tensors(out).values())
        if made:
            self._learn(func, given, shapes, made)
            if func in RESIZES and self.top is not None and given[0].dim() == 4:
                kind = str(kwargs.get("mode", "nearest")) if func is F.interpolate else "transposed convolution"
                self.resizes.append(Resize(self.top, kind, given[0], made[0], len(self.finished)))
        return out

    def _learn(self, func: Any, given: list[Tensor], shapes: list[tuple[int, ...]], made: list[Tensor]) -> None:
        known = [self.facts[id(x)] for x in given if id(x) in self.facts]
        weighs = any(isinstance(x, nn.Parameter) for x in given)
        if not known:
            return
        pools = any(word in getattr(func, "__name__", "") for word in POOLING) and len(shapes[0]) == 4
        for x in made:
            pooled = all(fact.pooled for fact in known) or (pools and x.dim() == 4 and x.shape[2:] != shapes[0][2:])
            self.facts[id(x)] = Fact(x, all(fact.raw for fact in known) and not weighs, pooled)
            for fact in known:
                self.consumers.setdefault(id(fact.tensor), []).append((weighs, id(x)))

    def is_last(self, resize: Resize) -> bool:
        """Whether no weights come after it: it resizes the result."""
        waiting, seen = [id(resize.result)], set()
        while waiting:
            key = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            for weighs, made in self.consumers.get(key, ()):
                if weighs:
                    return False
                waiting.append(made)
        return True

    def is_image(self, x: Tensor) -> bool:
        """Whether it is the image, or made of it without any weights."""
        return id(x) in self.facts and self.facts[id(x)].raw

    def is_pooled(self, x: Tensor) -> bool:
        """Whether it is made of pooled maps alone."""
        return id(x) in self.facts and self.facts[id(x)].pooled

    def guide(self, resize: Resize) -> Source | None:
        """The map of exactly the result's size that was there before.

        Among the arguments of the outermost module that was given one, where the encoder's maps come in; else what a
        module returned last.
        """
        for frame in _scopes(resize.frame):
            for path, x in frame.arguments.items():
                if self._guides(x, resize):
                    return Source(frame, path, None, x, self._label(x, resize, frame, path))
        for frame in reversed(self.finished[: resize.before]):
            for x in frame.results.values():
                if self._guides(x, resize) and (source := self.output_of(self._producer(frame, x, resize), resize, x)):
                    return source
        return None

    def output_of(self, frame: Frame, resize: Resize, x: Tensor) -> Source | None:
        """What a module returned, as a guide: the scope is the innermost one that both are inside of."""
        around = set(frame.chain()[:-1])
        scopes = [scope for scope in _scopes(resize.frame) if scope in around]
        path = next((path for path, result in frame.results.items() if result is x), None)
        if not scopes or path is None:
            return None
        return Source(scopes[-1], path, frame, x, frame.name)

    def calls(self, scope: Frame, others: list[Frame]) -> list[Resize]:
        """The resizes of a scope's pass, in order, without those of scopes inside of it."""
        inside = [other for other in others if other is not scope and scope in other.chain()]
        found = [resize for resize in self.resizes if scope in resize.frame.chain()]
        return [resize for resize in found if not any(other in resize.frame.chain() for other in inside)]

    def _guides(self, x: Tensor, resize: Resize) -> bool:
        fact = self.facts.get(id(x))
        return (
            fact is not None
            and not (fact.raw or fact.pooled)
            and x.dim() == 4
            and x.is_floating_point()
            and x.shape[0] == resize.source.shape[0]
            and x.shape[1] > 0  # ConvNeXt in segmentation_models.pytorch has an empty map at 1/2
            and x.shape[2:] == resize.result.shape[2:]
        )

    def _producer(self, frame: Frame, x: Tensor, resize: Resize) -> Frame:
        """The outermost call that returned this tensor and nothing else: `encoder.layer1`, not its last ReLU.

        Where all returned it among others, it is `frame`.
        """
        frame = next((made for made in self.finished[: resize.before] if made.results.get(()) is x), frame)
        running = resize.frame.chain()
        while (outer := frame.parent) and outer not in running and outer.results.get(()) is x:
            frame = outer
        return frame

    def _label(self, x: Tensor, resize: Resize, scope: Frame, path: Path) -> str:
        producer = self._producer(scope, x, resize)
        return f"{scope.name}({''.join(f'[{key!r}]' for key in path)})" if producer is scope else producer.name


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each of its modules is in the mode it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def rehearsing(model: nn.Module) -> Iterator[None]:
    """Evaluation without gradients that leaves the random state as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with evaluating(model), torch.random.fork_rng(devices), torch.no_grad():
        yield


def _scopes(frame: Frame) -> Iterator[Frame]:
    """The calls around a resize that can be a scope, outermost first; code that iterates a container is none."""
    return (x for x in frame.chain() if not isinstance(x.module, nn.ModuleList | nn.ModuleDict))


def in_upsampler(frame: Frame) -> bool:
    """Whether the call is one of an upsampler of ours, or inside of one."""
    return any(isinstance(other.module, Upsampler) for other in frame.chain())


def tensors(tree: Any, path: Path = ()) -> dict[Path, Tensor]:
    """The tensors in nested tuples, lists and mappings, by their path."""
    if isinstance(tree, Tensor):
        return {path: tree}
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, tuple | list):
        items = enumerate(tree)
    else:
        return {}
    return {key: x for name, part in items for key, x in tensors(part, (*path, name)).items()}
