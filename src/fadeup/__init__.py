"""Feature upsampling you can swap, measure and trust: FADE and every operator it is compared with.

The names below load torch, when they are first used, and nothing heavier; networks, data, training and reports are
imported by name. `import fadeup` alone loads nothing, so that `fadeup --help` and the page's server start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fadeup.functional import reassemble, semi_shift_conv, window_dot
    from fadeup.plug import Guide, downgrade, upgrade
    from fadeup.upsamplers import UPSAMPLERS, SemiShiftConv, Upsampler, build_upsampler, load_official

__version__ = "0.1.0"

__all__ = [
    "UPSAMPLERS",
    "Guide",
    "SemiShiftConv",
    "Upsampler",
    "__version__",
    "build_upsampler",
    "downgrade",
    "load_official",
    "reassemble",
    "semi_shift_conv",
    "upgrade",
    "window_dot",
]

_ROOMS = {
    "functional": ("reassemble", "semi_shift_conv", "window_dot"),
    "plug": ("Guide", "downgrade", "upgrade"),
    "upsamplers": ("UPSAMPLERS", "SemiShiftConv", "Upsampler", "build_upsampler", "load_official"),
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"fadeup.{name}")
    for room, names in _ROOMS.items():
        if name in names:
            found = getattr(import_module(f"fadeup.{room}"), name)
            globals()[name] = found  # asked once
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
