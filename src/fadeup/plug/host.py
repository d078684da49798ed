"""How an upsampler lives in a network that somebody else wrote: it answers the resizes of one module's forward pass.

The module, the *scope*, gets a child `fadeup` that holds the upsamplers, and its class becomes a subclass of its own
whose forward runs the original one under a `TorchFunctionMode`. The mode counts the resizes; those that have a step are
answered by it. All state of a pass is in the mode object, so that threads do not meet, and the network's code runs as
it is: `torch.compile`, `torch.export`, `copy.deepcopy` and pickling go through.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fadeup.functional import check_choice
from fadeup.upsamplers import Upsampler

RESIZES = (F.interpolate, torch.conv_transpose2d)
CHILD = "fadeup"
"""Name of the child by which upsamplers are registered in their scope."""
Path = tuple[int | str, ...]
"""Where a tensor lies in the arguments of a call: `(0, 2)` is `args[0][2]`, `("features", 2)` is `features[2]`."""
_running = threading.local()


class Blend(nn.Module):
    """`base + s * (up - base)` with one learned scalar s, 0 at the start: the result is `base`, bit by bit.

    The gradient reaches s at once and `up` as soon as s is not 0.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels, self.s = channels, nn.Parameter(torch.zeros(()))

    def forward(self, base: Tensor, up: Tensor) -> Tensor:
        """What stood there before, and what the upsampler makes of the same map."""
        return base + self.s * (up.to(base.dtype) - base)

    def macs(self, height: int, width: int) -> int:
        """Two per value of a result of `height` x `width`, as for FADE's gate."""
        return 2 * self.channels * height * width

    def extra_repr(self) -> str:
        """The present s."""
        return "on the meta device" if self.s.is_meta else f"s={self.s.item():.4g}"


class Step(nn.Module):
    """What stands in for one resize: a projection where channels change, the upsampler, and the blend where asked.

    Args:
        where: The resize, for messages.
        guide: Key of the guide among those of the pass.
        upsampler: Takes the map and the guide.
        project: Before the upsampler, in place of a transposed convolution that changes the channels.
        blend: Of the original resize and the upsampler's result.
    """

    def __init__(
        self, where: str, guide: str, upsampler: Upsampler, project: nn.Module | None = None, blend: Blend | None = None
    ):
        super().__init__()
        self.where, self.guide = where, guide
        self.upsampler, self.project, self.blend = upsampler, project, blend

    def forward(self, x: Tensor, guide: Tensor, base: Tensor | None) -> Tensor:
        """The upsampled map, of the guide's size; blended with `base` where there is a blend."""
        up = self.upsampler(x if self.project is None else self.project(x), guide)
        return up if self.blend is None else self.blend(base, up)

    def check(self, x: Tensor, guide: Tensor | None, size: tuple[int, int]) -> None:
        """Raise unless map and guide are such as were traced."""
        channels = self.upsampler.decoder_channels if self.project is None else x.shape[1]
        if guide is None:
            got = "none"
        elif x.shape[1] != channels or guide.shape[1] != self.upsampler.encoder_channels:
            got = f"{x.shape[1]} and {guide.shape[1]} channels"
        elif tuple(guide.shape[2:]) != size:
            got = f"a guide of {guide.shape[2]} x {guide.shape[3]} for a result of {size[0]} x {size[1]}"
        else:
            return
        raise ValueError(
            f"inputs must take the traced path: {self.where} must be given maps of {channels} and "
            f"{self.upsampler.encoder_channels} channels and a guide of the result's size, got {got}; {RETRACE}"
        )


class Plug(nn.Module):
    """The steps of one scope, by the number of the resize that each answers.

    Args:
        steps: The number of a resize within a pass of the scope, counted from 0, to its step.
        calls: How many resizes a pass has.
        arguments: The guides that are among the scope's arguments: key to path.
    """

    def __init__(self, steps: Mapping[int, Step], calls: int, arguments: Mapping[str, Path]):
        super().__init__()
        self.calls, self.arguments = calls, dict(arguments)
        for number, step in steps.items():
            self.add_module(str(number), step)


class _Pass(TorchFunctionMode):
    """One forward pass of a scope."""

    def __init__(self, plug: Plug, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__()
        self.plug, self.count = plug, 0
        self.guides: dict[str, Any] = {key: _at(path, args, kwargs) for key, path in plug.arguments.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in RESIZES or _running.passes[-1] is not self:  # a scope inside this one answers its own
            return func(*args, **kwargs)
        step = self.plug._modules.get(str(self.count))
        self.count += 1
        if not isinstance(step, Step):
            return func(*args, **kwargs)
        x, guide = args[0] if args else kwargs["input"], self.guides.get(step.guide)
        asked = step.blend is not None or func is torch.conv_transpose2d  # whose size only it can tell
        base = func(*args, **kwargs) if asked else None
        if not torch.compiler.is_exporting():  # comparing sizes would fix them in the graph
            step.check(x, guide, _target(x, base, args, kwargs))
        return step(x, guide, base)

    def finish(self) -> None:
        """Raise unless the pass had as many resizes as the traced one."""
        if self.count != self.plug.calls:
            raise ValueError(
                f"inputs must take the traced path, of {self.plug.calls} resizes, got {self.count}; {RETRACE}"
            )


RETRACE = "fadeup.downgrade the network and upgrade it with such an input as example"


def _at(path: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor at `path`; None where there is none."""
    value: Any = args if isinstance(path[0], int) else kwargs
    try:
        for key in path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        return None
    return value if isinstance(value, Tensor) else None


def _target(x: Tensor, base: Tensor | None, args: Any, kwargs: Any) -> tuple[int, int]:
    """The size that the resize would give."""
    if base is not None:
        return base.shape[2], base.shape[3]
    size = kwargs.get("size", args[1] if len(args) > 1 else None)
    if size is None:
        factor = kwargs.get("scale_factor", args[2] if len(args) > 2 else None)
        factors = factor if isinstance(factor, tuple | list) else (factor, factor)
        return int(x.shape[2] * factors[0]), int(x.shape[3] * factors[1])
    return (size[0], size[1]) if isinstance(size, tuple | list | torch.Size) else (size, size)


class Place(nn.Upsample):
    """Stands where a transposed convolution stood that an upsampler replaces; keeps it for `downgrade`."""

    def __init__(self, replaced: nn.ConvTranspose2d):
        super().__init__(scale_factor=tuple(float(stride) for stride in replaced.stride))  # type: ignore[arg-type]
        self.replaced = (replaced,)  # in a tuple, so that its weights are none of the network's

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """The resize that the scope's pass answers."""
        return super().forward(input)


@functools.cache
def plugged(base: type[nn.Module]) -> Any:
    """The subclass of `base`, of the same name, whose passes are answered by the child `fadeup`."""

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plug = self._modules.get(CHILD)
        if plug is None:
            out = base.forward(self, *args, **kwargs)
        else:
            outer = getattr(_running, "passes", ())
            here = _Pass(plug, args, kwargs)
            _running.passes = (*outer, here)
            try:
                with here:
                    out = base.forward(self, *args, **kwargs)
            finally:
                _running.passes = outer
            here.finish()
        for key, path in self.__dict__.get("fadeup_guides", {}).items():
            for running in getattr(_running, "passes", ()):
                running.guides[key] = _at((0, *path), (out,), {})
        return out

    def train(self: Any, mode: bool = True) -> Any:
        base.train(self, mode)
        if "fadeup_frozen" in self.__dict__:  # else statistics would go on changing under frozen weights
            for norm in _norms(self).values():
                norm.training = False
        return self

    def reduce(self: Any, protocol: Any) -> Any:
        _, _, *rest = base.__reduce_ex__(self, protocol)
        return _blank, (base,), *rest

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    methods: dict[str, Any] = {"forward": forward, "train": train, "__reduce_ex__": reduce, "fadeup_base": base}
    if issubclass(base, nn.Sequential):  # its forward runs all children
        methods["__iter__"] = lambda self: iter([x for key, x in self._modules.items() if key != CHILD])
        methods["__len__"] = lambda self: len(self._modules) - (CHILD in self._modules)
    return type(base.__name__, (base,), names | methods)


def _blank(base: type[nn.Module]) -> nn.Module:
    """An instance of `plugged(base)` for pickle and deepcopy to fill."""
    return object.__new__(plugged(base))


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with running statistics that are not the steps', by name."""
    own = {id(part) for step in steps(model) for part in step.modules()}
    norms = {key: x for key, x in model.named_modules() if isinstance(x, nn.modules.batchnorm._NormBase)}
    return {key: x for key, x in norms.items() if id(x) not in own}


def steps(model: nn.Module) -> Iterator[Step]:
    """The steps of an upgraded network."""
    return (module for module in model.modules() if isinstance(module, Step))


def is_plugged(module: nn.Module) -> bool:
    """Whether the module's class is one of `plugged`."""
    return "fadeup_base" in type(module).__dict__


def freeze(model: nn.Module, trainable: str) -> None:
    """Leave all, or nothing but the steps, to be trained.

    Raises:
        ValueError: `trainable` is another word.
    """
    if check_choice("trainable", trainable, ("all", "upsamplers")) == "all":
        return
    own = {id(parameter) for step in steps(model) for parameter in step.parameters()}
    frozen = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in own}
    if not is_plugged(model):
        model.__class__ = plugged(type(model))
    norms = _norms(model)
    model.__dict__["fadeup_frozen"] = (tuple(frozen), {name: norm.training for name, norm in norms.items()})
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    for norm in norms.values():
        norm.training = False


def unplug(model: nn.Module) -> None:
    """Take out all that `upgrade` put into `model`."""
    parameters, norms = model.__dict__.get("fadeup_frozen", ((), {}))
    for name in parameters:
        model.get_parameter(name).requires_grad_(True)
    for name, training in norms.items():  # one that was in evaluation by itself stays there
        model.get_submodule(name).training = training and model.training
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, Place):
                module._modules[name] = _moved(child.replaced[0], model)
    for module in list(model.modules()):
        if is_plugged(module):
            module._modules.pop(CHILD, None)
            for name in ("fadeup_guides", "fadeup_frozen"):
                module.__dict__.pop(name, None)
            module.__class__ = type(module).fadeup_base  # type: ignore[attr-defined]


def _moved(module: nn.Module, model: nn.Module) -> nn.Module:
    """The module on the device and of the dtype of the network, which may have moved since."""
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    return module.train(model.training) if like is None else module.to(like.device, like.dtype).train(model.training)
