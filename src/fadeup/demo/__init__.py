"""The web page: two upsamplers over one photograph, in a browser."""

import os

# Gradio reads both when it is imported: it is to ask no one anything. The worker does without Gradio.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"

INSIDE, EDGE = (0, 114, 178), (230, 159, 0)
"""The brush's colours, RGB: what is wholly foreground, and what is to be found out."""
STAGES = ("finest", "middle", "coarsest")
"""Of a network's upsamplers, those whose kernels can be seen."""
