"""What is on the page, and which event does what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.themes import Default
from PIL import Image

from fadeup.demo import EDGE, INSIDE, STAGES
from fadeup.demo.page import FIRST, KEPT, Page

TASKS = {"Segment": "segment", "Matte": "matte", "Reconstruct": "reconstruct"}
CSS = """
#title h1 { margin-bottom: 0 }
.legend span.chip { display: inline-block; width: .9em; height: .9em; margin: 0 .35em 0 .9em; vertical-align: -.1em;
  border: 1px solid #777 }
.wide { overflow-x: auto }
table.measured { border-collapse: collapse; width: 100% }
table.measured td, table.measured th { padding: .3em .5em; text-align: right; border: 0 solid #8886 }
table.measured td { white-space: nowrap }
table.measured tr { border-bottom: 1px solid #8886 }
table.measured th:first-child, table.measured td:first-child { text-align: left }
#shipped button { min-height: 44px }
"""
INTRO = """# fadeup
Two networks that differ in their upsampler alone, over your photograph. Everything is computed on the machine that
serves this page; nothing leaves it."""
ABOUT = {
    "segment": "The networks that ship know satellite pictures, and nothing else.",
    "matte": """How much of each pixel is the thing. Paint **inside** (blue) what is wholly the thing, and **edge**
(orange) where hair or blur is to be found out; the rest is background. Without an edge a band around the inside is
taken. A picture of a trimap, or of a rough black-and-white mask, does instead; the dandelion has one.""",
    "reconstruct": "An autoencoder gives the photograph back; what details it keeps comes through its upsamplers.",
}
DIFFERENCES = {
    "segment": "**Boundaries** of the classes: grey in both, orange in the left one only, blue in the right one only.",
    "matte": "**Difference** of the alphas: orange where the left one is larger, purple where the right one is.",
    "reconstruct": "**Error**: orange where the left one is further off, purple where the right one is.",
}
GATES = (
    "**Gates** of the networks that have them: yellow lets the encoder's detail through, blue the upsampled decoder."
)
KERNELS = """**Kernels** of the neighbouring output pixels above one decoder point. In FADE the encoder's logits differ
from neighbour to neighbour, the decoder's are shared by all."""


def build(page: Page) -> gr.Blocks:
    """The page's parts and what they do."""
    with gr.Blocks(title="fadeup", analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as blocks:
        gr.Markdown(INTRO, elem_id="title")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                parts = _inputs(page)
            with gr.Column(scale=3, min_width=320):
                parts |= _results()
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                parts["meaning"] = gr.Markdown(DIFFERENCES["segment"], elem_id="meaning")
                parts["difference"] = _shown("Difference", "difference")
            with gr.Column(scale=3, min_width=320):
                gr.Markdown(GATES)
                parts["gates"] = _shown("Gates", "gates")
        with gr.Accordion("Kernels at a point", elem_id="kernels-part"), gr.Row():
            parts |= _kernels()
        _wire(page, blocks, parts)
    return blocks


def _inputs(page: Page) -> dict[str, Any]:
    """Photograph, task, upsamplers, trimap."""
    tasks = [(label, task) for label, task in TASKS.items() if page.choices[task]]
    names = page.choices[tasks[0][1]]
    photo = gr.Image(
        str(next(iter(page.shipped.values()))),
        type="filepath",
        sources=["upload", "clipboard"],
        label="Photograph",
        height=280,
        buttons=BUTTONS[1:],
        elem_id="photo",
    )
    # The worker decodes it, not the page: there a bad one is refused in words, and holds up no one else.
    photo.preprocess = lambda payload: None if payload is None else payload.path
    shipped = gr.Dropdown(
        list(page.shipped), value=next(iter(page.shipped)), label="or one that ships", elem_id="shipped"
    )
    task = gr.Radio(tasks, value=tasks[0][1], label="Task", elem_id="task")
    about = gr.Markdown(ABOUT[tasks[0][1]], elem_id="about")
    with gr.Row():
        left = gr.Dropdown(names, value=_default(names, FIRST[0]), label="Left", elem_id="left", min_width=120)
        right = gr.Dropdown(names, value=_default(names, FIRST[1]), label="Right", elem_id="right", min_width=120)
    with gr.Column(visible=False, elem_id="trimap") as trimap:
        drawn = gr.ImageEditor(
            type="numpy",
            image_mode="RGBA",
            layers=False,
            transforms=(),
            sources=(),
            brush=gr.Brush(
                default_size=24, colors=[f"#{bytes(colour).hex()}" for colour in (INSIDE, EDGE)], color_mode="fixed"
            ),
            label="Paint the trimap",
            elem_id="drawn",
        )
        file = gr.File(label="or a trimap's or mask's file", file_types=["image"], height=130, elem_id="trimap-file")
    run = gr.Button("Compare", variant="primary", elem_id="run")
    return {
        "photo": photo, "shipped": shipped, "task": task, "about": about, "left": left, "right": right,
        "trimap": trimap, "drawn": drawn, "file": file, "run": run,
    }  # fmt: skip


def _results() -> dict[str, Any]:
    """Slider, what was measured, files."""
    slider = gr.ImageSlider(label="Left and right", format="png", interactive=False, elem_id="slider")
    place = gr.Slider(0, 100, 50, step=1, label="Where the line stands, %", elem_id="place")
    note, legend, measured = (gr.HTML(elem_id=name) for name in ("note", "legend", "measured"))
    with gr.Row():
        downloads = [
            gr.DownloadButton(f"Result, {side}", interactive=False, elem_id=f"download-{side}")
            for side in ("left", "right")
        ]
        cut = gr.Button("Make cut-out, right", visible=False, elem_id="cut")
        cutout = gr.DownloadButton("Cut-out", interactive=False, visible=False, elem_id="download-cutout")
    return {
        "slider": slider, "place": place, "note": note, "legend": legend, "measured": measured,
        "downloads": downloads, "cut": cut, "cutout": cutout,
    }  # fmt: skip


def _kernels() -> dict[str, Any]:
    """The point, by a click or by numbers, and what is drawn of it."""
    with gr.Column(scale=2, min_width=320):
        map_ = gr.Image(label="Click a point", interactive=False, buttons=BUTTONS[1:], elem_id="map")
        with gr.Row():
            row = gr.Number(50, minimum=0, maximum=100, label="Row, % of the height", elem_id="row", min_width=120)
            column = gr.Number(
                50, minimum=0, maximum=100, label="Column, % of the width", elem_id="column", min_width=120
            )
        whose = gr.Radio(["Left", "Right"], value="Right", label="Network", elem_id="whose")
        stage = gr.Radio(list(STAGES), value=STAGES[0], label="Stage", elem_id="stage")
        look = gr.Button("Show kernels", elem_id="look")
    with gr.Column(scale=3, min_width=320):
        gr.Markdown(KERNELS)
        kernels = _shown("Kernels", "kernels")
    return {
        "map": map_, "row": row, "column": column, "whose": whose, "stage": stage, "look": look, "kernels": kernels,
    }  # fmt: skip


def _shown(label: str, name: str) -> gr.Image:
    """A picture that is computed; its label is for screen readers, a heading stands above it."""
    return gr.Image(label=label, show_label=False, format="png", interactive=False, buttons=BUTTONS, elem_id=name)


def _default(names: Sequence[str], wanted: str) -> str:
    return wanted if wanted in names else names[0]


WAITING = 20
"""Visitors that may wait; the next one is told that the queue is full."""
BUTTONS: list[Any] = ["download", "fullscreen"]
"""Of pictures; Gradio's own set has one that would share them with a service."""
SHOWN = ("slider", "measured", "legend", "note", "difference", "gates")
"""Parts that a comparison fills."""
QUEUED: dict[str, Any] = {"concurrency_id": "work", "concurrency_limit": 1, "api_visibility": "private"}
"""Of events that compute: one queue, one at a time."""
QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def _wire(page: Page, blocks: gr.Blocks, parts: dict[str, Any]) -> None:
    """Comparison, files, and the line between the pictures."""
    photo, right, drawn, file = (parts[name] for name in ("photo", "right", "drawn", "file"))
    inputs = [parts[name] for name in ("photo", "task", "left", "right", "drawn", "file")]
    outputs = [*(parts[name] for name in (*SHOWN, "meaning")), *parts["downloads"]]

    def compare(photo: Any, task: str, left: str, right: str, drawn: Any, file: Any) -> Iterator[dict[Any, Any]]:
        for found in page.compare(photo, task, left, right, drawn, file):
            update = {parts[name]: found[name] for name in SHOWN if name in found}
            if "files" in found:
                update[parts["meaning"]] = DIFFERENCES[task]
                for button, path in zip(parts["downloads"], found["files"], strict=True):
                    update[button] = gr.DownloadButton(value=path, interactive=True)
            yield update

    def cut(photo: Any, right: str, drawn: Any, file: Any) -> gr.DownloadButton:
        return gr.DownloadButton(value=page.cutout(photo, right, drawn, file), interactive=True)

    busy = {"show_progress_on": parts["slider"], **QUEUED}
    parts["run"].click(compare, inputs, outputs, trigger_mode="always_last", **busy)
    blocks.load(compare, inputs, outputs, **busy)
    parts["cut"].click(cut, [photo, right, drawn, file], parts["cutout"], **QUEUED)
    parts["place"].change(lambda at: gr.ImageSlider(slider_position=at), parts["place"], parts["slider"], **QUICK)
    _wire_task(page, blocks, parts, outputs)
    _wire_kernels(page, parts, inputs)


def _wire_task(page: Page, blocks: gr.Blocks, parts: dict[str, Any], outputs: list[Any]) -> None:
    """What follows from another task or photograph."""

    def switch(task: str, photo: str | None) -> dict[Any, Any]:
        names, matting = page.choices[task], task == "matte"
        update = dict.fromkeys((parts[name] for name in (*SHOWN, "kernels")), None) | {
            parts["left"]: gr.Dropdown(names, value=_default(names, FIRST[0])),
            parts["right"]: gr.Dropdown(names, value=_default(names, FIRST[1])),
            parts["about"]: ABOUT[task],
            parts["trimap"]: gr.Column(visible=matting),
            parts["cut"]: gr.Button(visible=matting),
            parts["cutout"]: gr.DownloadButton(visible=matting, interactive=False),
        }
        update |= {button: gr.DownloadButton(interactive=False) for button in parts["downloads"]}
        if photo is None or Path(photo).name in [path.name for path in page.shipped.values()]:
            title = list(page.shipped)[-1 if matting else 0]
            update |= {parts["photo"]: str(page.shipped[title]), parts["shipped"]: title}
        return update

    def place(photo: str | None) -> list[Any]:
        picture = page.backdrop(photo)
        return [picture, picture, None]

    names = ("left", "right", "kernels", "about", "trimap", "cut", "cutout", "photo", "shipped")
    photo = parts["photo"]
    parts["task"].change(switch, [parts["task"], photo], [*outputs, *(parts[name] for name in names)], **QUICK)
    parts["shipped"].input(lambda title: str(page.shipped[title]), parts["shipped"], photo, **QUICK)
    gr.on([photo.change, blocks.load], place, photo, [parts["map"], parts["drawn"], parts["file"]], **QUEUED)


def _wire_kernels(page: Page, parts: dict[str, Any], inputs: list[Any]) -> None:
    """A point, by a click or by numbers."""

    def look(photo: Any, task: str, left: str, right: str, drawn: Any, file: Any, *rest: Any) -> str:
        whose, stage, row, column = rest
        return page.kernels(photo, task, left if whose == "Left" else right, drawn, file, stage, (row, column))

    def clicked(picture: np.ndarray, event: gr.SelectData) -> list[float]:
        return [round(100 * (at + 0.5) / side, 1) for at, side in zip(event.index[::-1], picture.shape, strict=False)]

    asked = [*inputs, *(parts[name] for name in ("whose", "stage", "row", "column"))]
    at = parts["map"].select(clicked, parts["map"], [parts["row"], parts["column"]], **QUICK)
    at.then(look, asked, parts["kernels"], **QUEUED)
    parts["look"].click(look, asked, parts["kernels"], trigger_mode="always_last", **QUEUED)


def launch(blocks: gr.Blocks, host: str, port: int, max_pixels: int, megabytes: int, waiting: int = WAITING) -> None:
    """Serve the page from a thread of this process: no word to anyone else, every file from this machine."""
    Image.MAX_IMAGE_PIXELS = 2 * max_pixels  # strokes and the map, which Gradio decodes; PIL refuses twice as many
    blocks.queue(max_size=waiting, default_concurrency_limit=1)
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        max_file_size=f"{megabytes}mb",
        footer_links=[],
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        prevent_thread_lock=True,
        enable_monitoring=False,
    )
