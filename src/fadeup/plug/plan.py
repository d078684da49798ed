"""Finds the upsampling steps of a network, chooses a guide for each, and puts upsamplers there."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fadeup.functional import check_choice
from fadeup.plug.host import CHILD, Blend, Place, Plug, Step, freeze, is_plugged, plugged, steps, unplug
from fadeup.plug.report import Report, Row
from fadeup.plug.trace import Resize, Source, Trace, in_upsampler, rehearsing, tensors
from fadeup.upsamplers import build_upsampler, resolve

Inputs = Tensor | list[Any] | tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class Guide:
    """The map that guides the upsampler of one step.

    Args:
        module: Name of a module of the network; the first map of the right size in what it returns is taken.
        upsampler: Name, with options where there are some: `"fade,kernel_size=3"`.
    """

    module: str
    upsampler: str = "fade"


@dataclass
class _Site:
    """A resize and what was decided about it."""

    resize: Resize
    upsampler: str
    source: Source | None = None
    step: Step | None = None
    repeated: bool = False
    """Whether an earlier pass of the same module had the step already."""
    reason: str = ""

    @property
    def replaced(self) -> nn.ConvTranspose2d | None:
        """The module that goes where the step comes: a transposed convolution without a blend with it."""
        module, step = self.resize.frame.module, self.step
        if step is None or step.blend is not None or not isinstance(module, nn.ConvTranspose2d):
            return None
        return module


def upgrade(
    model: nn.Module,
    upsampler: str | Mapping[str, Guide] = "fade",
    *,
    example_inputs: Inputs | None = None,
    init: str | None = None,
    trainable: str = "all",
    within: str = "",
    **options: Any,
) -> Report:
    """Put an upsampler in place of the upsampling steps of a network that somebody else wrote.

    A step is a call of `F.interpolate` (`nn.Upsample`) or a transposed convolution. It is eligible where its result is
    larger in both directions, its map has several channels and does not come from pooled maps alone, a map of features
    (not the image) of exactly the result's size was computed before, which becomes the guide, and weights come after
    it: the last resize of the logits is left. The guide is looked for among the arguments of the modules around the
    step, the outermost first, and then among what modules returned, the last first.

    The network changes in place: it keeps its class's name, its code runs as before, and the modules around the steps
    get a child `fadeup` with the upsamplers. Replaced transposed convolutions are taken out. `downgrade` undoes it.

    Args:
        model: The network.
        upsampler: Name of an upsampler, options may follow it, for all eligible steps; or which steps to upgrade and
            by which guides, `{"decoder.up2": Guide("encoder.layer1")}`, named as in the report: a module with one
            resize, or `name:2` for the third resize that happens in it.
        example_inputs: A tensor or list as the network's one argument, a tuple of arguments, or a mapping of keyword
            arguments. It runs once in evaluation mode. None stands for two noise pictures of 64 x 96 with as many
            channels as the first convolution takes.
        init: `"host"` starts with what the network computes now: `out = base + s * (X - base)` with `base` what stood
            there and `s` learned, 0 at the start. Give s, which has to move by about 1, a learning rate to match. Any
            other value is the upsampler's own option, where it has one.
        trainable: `"all"`, or `"upsamplers"` to freeze the rest, the statistics of BatchNorm included.
        within: Look only inside this module, such as `"decoder"`.
        **options: Of the upsampler.

    Returns:
        A table of all resizes, with the reason where one was left.

    Raises:
        ValueError: The network is upgraded already, takes no such example, or has no step that can be upgraded; a
            step or guide does not exist, or does not fit. The network is as it was then.
        TypeError: The upsampler does not know an option.

    >>> import torch
    >>> from torch import nn
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
    ...         self.up, self.head = nn.Upsample(scale_factor=2), nn.Conv2d(16, 2, 1)
    ...     def forward(self, image):
    ...         return self.head(self.up(self.coarse(self.fine(image))))
    >>> report = upgrade(Net(), "fade_lite")
    >>> report.placed[0].where, report.placed[0].guide
    ('up', 'fine')
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"model must be a torch.nn.Module that is not scripted, got {type(model).__name__}")
    if any(is_plugged(module) for module in model.modules()):
        raise ValueError("model must be a network as it came, got an upgraded one; use fadeup.downgrade first")
    if within and within not in dict(model.named_modules()):
        raise ValueError(f"within must be a module of the network, got {within!r}{_near(within, _names(model))}")
    check_choice("trainable", trainable, ("all", "upsamplers"))
    if init is not None and init != "host":
        options["init"] = init
    args, kwargs = _arguments(model, example_inputs)
    trace = _traced(model, args, kwargs)
    found = [resize for resize in trace.resizes if not within or f"{resize.frame.name}.".startswith(f"{within}.")]
    named = isinstance(upsampler, Mapping)
    sites = _named(model, trace, found, upsampler) if named else _automatic(trace, found, upsampler)
    for site in sites:
        if site.source is not None:
            _build(site, host=init == "host", named=named, options=options)
    placed = [site for site in sites if site.step]
    if not placed:
        reasons = "; ".join(f"{site.resize.where}: {site.reason}" for site in sites) or "it resizes nothing"
        raise ValueError(f"model must have an upsampling step that can be upgraded, got none ({reasons})")
    try:
        _place(model, trace, placed)
        freeze(model, trainable)
        with rehearsing(model):
            model(*args, **kwargs)
    except BaseException:
        unplug(model)
        raise
    return Report(tuple(_row(site) for site in sites))


def downgrade(model: nn.Module) -> None:
    """Undo `upgrade`: every resize is what it was, weights that were trained since stay, frozen ones train again.

    Raises:
        ValueError: The network is not upgraded.
    """
    if not any(is_plugged(module) for module in model.modules()):
        raise ValueError("model must be an upgraded network, got one without upsamplers of fadeup.upgrade")
    unplug(model)


def added_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that `upgrade` added, for a learning rate of their own."""
    return (parameter for step in steps(model) for parameter in step.parameters())


def _arguments(model: nn.Module, example: Inputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the example's call."""
    if example is None:
        first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        if first is None:
            raise ValueError("example_inputs must be given for a network without convolutions, got None")
        noise = torch.rand(2, first.in_channels, 64, 96, generator=torch.Generator().manual_seed(0))
        return (noise.to(first.weight.device, first.weight.dtype),), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    try:
        return Trace(model, args, kwargs)
    except Exception as error:  # whatever the network raises
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors((args, kwargs)).values()) or "no tensor"
        raise ValueError(
            f"example_inputs must be what the network takes, got {shapes}, on which it fails: "
            f"{type(error).__name__}: {error}"
        ) from error


def _automatic(trace: Trace, found: list[Resize], upsampler: str) -> list[_Site]:
    """Every resize, with its guide or the reason why it has none."""
    sites = []
    for resize in found:
        site = _Site(resize, upsampler, reason=_obstacle(trace, resize))
        if not site.reason:
            site.source = trace.guide(resize)
            if site.source is None:
                height, width = resize.result.shape[2:]
                site.reason = f"no map of features of {height} × {width} before it"
        sites.append(site)
    return sites


def _obstacle(trace: Trace, resize: Resize) -> str:
    (height, width), (out_height, out_width) = resize.source.shape[2:], resize.result.shape[2:]
    if in_upsampler(resize.frame):
        return "part of an upsampler of fadeup"
    if trace.is_image(resize.source):
        return "the image"
    if out_height <= height or out_width <= width:
        return "not larger in both directions"
    if resize.source.shape[1] == 1:
        return "a map of one channel"
    if trace.is_pooled(resize.source):
        return "made of pooled maps"
    return "the last resize, of the result" if trace.is_last(resize) else ""


def _named(model: nn.Module, trace: Trace, found: list[Resize], guides: Mapping[str, Guide]) -> list[_Site]:
    """The steps that were asked for, and all others as left."""
    chosen = {}
    for name, guide in guides.items():
        if not isinstance(guide, Guide):
            raise ValueError(f"upsampler[{name!r}] must be a fadeup.Guide('module'), got {guide!r}")
        resolve(guide.upsampler)
        resize = _find(model, found, name)
        if resize in chosen:
            raise ValueError(f"upsampler must name each step once, got {resize.where!r} a second time as {name!r}")
        chosen[resize] = _Site(resize, guide.upsampler, _source(model, trace, resize, guide.module))
    return [chosen.get(resize) or _Site(resize, "", reason="not asked for") for resize in found]


def _find(model: nn.Module, found: list[Resize], name: str) -> Resize:
    inside = [resize for resize in found if name in [frame.name for frame in resize.frame.chain()[1:]]]
    exact = [resize for resize in found if resize.where == name] or inside
    if len(exact) == 1:
        return exact[0]
    if exact:
        places = ", ".join(repr(resize.where) for resize in exact)
        raise ValueError(f"upsampler must name one step, got {name!r}, in which there are {places}")
    places = [resize.where for resize in found]
    known = f"module {name!r}, which resizes nothing" if name in _names(model) else repr(name)
    raise ValueError(
        f"upsampler must name steps of the network, {', '.join(map(repr, places)) or 'of which there are none'}, "
        f"got {known}{_near(name, places)}"
    )


def _source(model: nn.Module, trace: Trace, resize: Resize, name: str) -> Source:
    """What the module of that name returns, where it can guide the step."""
    if name not in _names(model):
        raise ValueError(f"guide must be a module of the network, got {name!r}{_near(name, _names(model))}")
    before = [frame for frame in trace.finished[: resize.before] if frame.name == name]
    rule = f"guide of {resize.where!r} must be a module that has returned a map by then, got {name!r}"
    if not before:
        raise ValueError(f"{rule}, which runs later or not at all")
    maps = [x for x in before[-1].results.values() if x.dim() == 4]
    size = resize.result.shape[2:]
    fitting = [x for x in maps if x.shape[2:] == size and x.shape[0] == resize.source.shape[0]]
    if not fitting:
        shapes = " and ".join(f"{x.shape[2]} x {x.shape[3]}" for x in maps) or "no map"
        raise ValueError(
            f"guide of {resize.where!r} must be {size[0]} x {size[1]} as the step's result, got {name!r} with {shapes}"
            + ("; it is smaller than the decoder's map" if maps and _smaller(maps[0], resize.source) else "")
        )
    source = trace.output_of(before[-1], resize, fitting[0])
    if source is None:
        raise ValueError(f"{rule}, from inside of which the step is run")
    return source


def _smaller(x: Tensor, other: Tensor) -> bool:
    return x.shape[2] < other.shape[2] or x.shape[3] < other.shape[3]


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _build(site: _Site, *, host: bool, named: bool, options: dict[str, Any]) -> None:
    """The site's step, or the reason why its upsampler cannot be built."""
    resize, source = site.resize, site.source
    assert source is not None
    channels, out_channels = resize.source.shape[1], resize.result.shape[1]
    kind = resolve(site.upsampler)[0]
    ratios = [after / before for before, after in zip(resize.source.shape[2:], resize.result.shape[2:], strict=True)]
    scale = max(map(math.ceil, ratios)) if kind.works_in_phases else ratios[0]
    try:
        upsampler = build_upsampler(site.upsampler, out_channels, source.tensor.shape[1], **{"scale": scale, **options})
        upsampler._check_size(resize.source, source.tensor)
    except ValueError as error:
        if named:
            raise
        site.reason = str(error)
        return
    project = None if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
    step = Step(resize.where, _key(source), upsampler, project, Blend(out_channels) if host else None)
    site.step = step.to(resize.source.device, resize.source.dtype)


def _key(source: Source) -> str:
    """What the scope's pass knows the guide by."""
    return f"{source.producer.name if source.producer else ''}{list(source.path)}"


def _place(model: nn.Module, trace: Trace, placed: list[_Site]) -> None:
    """Change the network: classes and children of scopes, marks on what returns guides, no transposed convolutions."""
    frames = list({site.source.scope: None for site in placed if site.source})
    for scope in frames:
        calls = trace.calls(scope, frames)
        numbers = {resize: number for number, resize in enumerate(calls)}
        plug = scope.module._modules.get(CHILD)
        sites = [site for site in placed if site.source and site.source.scope is scope]
        if isinstance(plug, Plug):  # a module that is run several times has its steps from the first time
            for site in sites:
                site.repeated = True
                if len(calls) != plug.calls or str(numbers[site.resize]) not in plug._modules:
                    raise ValueError(
                        f"model must resize alike each time that it runs {scope.name!r}, got passes that differ; name "
                        "steps elsewhere, or look inside another module with within"
                    )
            continue
        steps = {numbers[site.resize]: site.step for site in sites if site.step}
        arguments = {_key(site.source): site.source.path for site in sites if site.source and not site.source.producer}
        _plug_in(scope.module)
        scope.module.add_module(CHILD, Plug(steps, len(calls), arguments).train(model.training))
        for site in sites:
            if site.source and site.source.producer:
                producer = _plug_in(site.source.producer.module)
                producer.__dict__.setdefault("fadeup_guides", {})[_key(site.source)] = site.source.path
    for module in {id(site.replaced): site.replaced for site in placed}.values():
        if module is not None:
            _replace(model, module)


def _plug_in(module: nn.Module) -> nn.Module:
    if not is_plugged(module):
        module.__class__ = plugged(type(module))
    return module


def _replace(model: nn.Module, convolution: nn.ConvTranspose2d) -> None:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is convolution:
                module._modules[name] = Place(convolution)


def _row(site: _Site) -> Row:
    resize, step = site.resize, site.step
    row = Row(resize.where, resize.kind, _shape(resize.source), _shape(resize.result), reason=site.reason)
    if step is None or site.source is None:
        return row
    size, out_size = row.source[1:], row.result[1:]
    macs = step.upsampler.macs(*size)
    if isinstance(step.project, nn.Conv2d):
        macs += step.project.weight.numel() * size[0] * size[1]
    if step.blend is not None:
        macs += step.blend.macs(*out_size)
    return replace(
        row,
        guide=site.source.label,
        guide_channels=site.source.tensor.shape[1],
        upsampler=site.upsampler + (", blended" if step.blend is not None else ""),
        parameters=0 if site.repeated else sum(p.numel() for p in step.parameters()),
        removed=0 if site.repeated or not site.replaced else sum(p.numel() for p in site.replaced.parameters()),
        macs=macs,
    )


def _shape(x: Tensor) -> tuple[int, int, int]:
    return x.shape[1], x.shape[2], x.shape[3]
