"""The web page: two upsamplers over one photograph, in a browser."""

import os
from dataclasses import dataclass

# Gradio reads them when it is imported: it is to ask no one anything. The worker does without Gradio.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
# It keeps statistics of its last 10,000 events and goes through all of them after each; this page shows none.
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"

INSIDE, EDGE = (0, 114, 178), (230, 159, 0)
"""The brush's colours, RGB: what is wholly foreground, and what is to be found out."""
STAGES = ("finest", "middle", "coarsest")
"""Of a network's upsamplers, those whose kernels can be seen."""
SEGMENT, MATTE, RECONSTRUCT = "segment", "matte", "reconstruct"


@dataclass(frozen=True)
class Task:
    """What a task is called on the page, and how its files' names end."""

    label: str
    ending: str


TASKS = {
    SEGMENT: Task("Segment", "labels"),
    MATTE: Task("Matte", "alpha"),
    RECONSTRUCT: Task("Reconstruct", "reconstruction"),
}
"""What networks are compared in."""
