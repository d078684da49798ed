"""Feature upsampling you can swap, measure and trust: FADE and every operator it is compared with.

`import fadeup` loads torch and nothing heavier; networks, data, training and reports are imported by name.
"""

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
