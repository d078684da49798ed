"""Put any upsampler into a network that somebody else wrote, and take it out again.

report = fadeup.upgrade(network, "fade", example_inputs=torch.rand(2, 3, 64, 96))
fadeup.downgrade(network)
"""

from fadeup.plug.host import Blend
from fadeup.plug.plan import Guide, added_parameters, downgrade, upgrade
from fadeup.plug.report import Report, Row

__all__ = ["Blend", "Guide", "Report", "Row", "added_parameters", "downgrade", "upgrade"]
