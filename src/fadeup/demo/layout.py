"""What is on the page, and which event does what."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.blocks import Block
from gradio.themes import Default
from gradio.utils import LRUCache
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fadeup.demo import EDGE, INSIDE, MATTE, RECONSTRUCT, SEGMENT, STAGES, TASKS
from fadeup.demo.page import FIRST, KEPT, SESSIONS, Page, refusal
from fadeup.demo.turns import Full, Replaced, Standing
from fadeup.demo.worker import GivenUp

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
    SEGMENT: "The networks that ship know satellite pictures, and nothing else.",
    MATTE: """How much of each pixel is the thing. Paint **inside** (blue) what is wholly the thing, and **edge**
(orange) where hair or blur is to be found out; the rest is background. Without an edge a band around the inside is
taken. A picture of a trimap, or of a rough black-and-white mask, does instead; the dandelion has one.""",
    RECONSTRUCT: "An autoencoder gives the photograph back; what details it keeps comes through its upsamplers.",
}
DIFFERENCES = {
    SEGMENT: "**Boundaries** of the classes: grey in both, orange in the left one only, blue in the right one only.",
    MATTE: "**Difference** of the alphas: orange where the left one is larger, purple where the right one is.",
    RECONSTRUCT: "**Error**: orange where the left one is further off, purple where the right one is.",
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
                parts["meaning"] = gr.Markdown(DIFFERENCES[SEGMENT], elem_id="meaning")
                parts["difference"] = _shown("Difference", "difference")
            with gr.Column(scale=3, min_width=320):
                gr.Markdown(GATES)
                parts["gates"] = _shown("Gates", "gates")
        with gr.Accordion("Kernels at a point", elem_id="kernels-part"), gr.Row():
            parts |= _kernels()
        _wire(page, blocks, parts)
    for part in blocks.blocks.values():
        if isinstance(part, Block):
            _without_addresses(part)
    # Strokes that were painted and never used; Gradio keeps them all.
    parts["drawn"].blob_storage = LRUCache(page.turns.most)
    return blocks


def _without_addresses(part: Block) -> None:
    """Take no web address in place of a file: Gradio would fetch it, and this page asks no one for anything."""
    moved = part.async_move_resource_to_block_cache

    async def local(url_or_file_path: str | Path | None) -> str | None:
        if "://" in str(url_or_file_path):
            raise refusal("Files must be uploaded, got a web address")
        return await moved(url_or_file_path)

    part.async_move_resource_to_block_cache = local


def _inputs(page: Page) -> dict[str, Any]:
    """Photograph, task, upsamplers, trimap."""
    tasks = [(its.label, task) for task, its in TASKS.items() if page.choices[task]]
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
    with gr.Row():
        run = gr.Button("Compare", variant="primary", elem_id="run", min_width=120, scale=3)
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", min_width=80, scale=1)
    state = gr.HTML(elem_id="state", min_height=24)
    return {
        "photo": photo, "shipped": shipped, "task": task, "about": about, "left": left, "right": right,
        "trimap": trimap, "drawn": drawn, "file": file, "run": run, "stop": stop, "state": state,
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


BUTTONS: list[Any] = ["download", "fullscreen"]
"""Of pictures; Gradio's own set has one that would share them with a service."""
SHOWN = ("slider", "measured", "legend", "note", "difference", "gates")
"""Parts that a comparison fills."""
QUEUED: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "trigger_mode": "multiple"}
"""Of events that compute. They wait in the page's own line: Gradio's would let one visitor stand in it many times."""
QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def _wire(page: Page, blocks: gr.Blocks, parts: dict[str, Any]) -> None:
    """Comparison, files, and the line between the pictures."""
    photo, right, drawn, file = (parts[name] for name in ("photo", "right", "drawn", "file"))
    inputs = [parts[name] for name in ("photo", "task", "left", "right", "drawn", "file")]
    outputs = [*(parts[name] for name in (*SHOWN, "meaning")), *parts["downloads"]]
    status = [parts["stop"], parts["state"]]

    def compare(stop: threading.Event, *chosen: Any) -> Iterator[dict[Any, Any]]:
        for found in page.compare(*chosen, stop=stop):
            update = {parts[name]: found[name] for name in SHOWN if name in found}
            if "slider" in found:  # those of the comparison before would pass for this one's
                update |= {parts[name]: None for name in ("difference", "gates")}
                update |= {button: gr.DownloadButton(interactive=False) for button in parts["downloads"]}
            if "files" in found:
                update[parts["meaning"]] = DIFFERENCES[chosen[1]]
                for button, path in zip(parts["downloads"], found["files"], strict=True):
                    update[button] = gr.DownloadButton(value=path, interactive=True)
            yield update

    def cut(stop: threading.Event, *chosen: Any) -> Iterator[dict[Any, Any]]:
        yield {parts["cutout"]: gr.DownloadButton(value=page.cutout(*chosen, stop=stop), interactive=True)}

    async def stop(request: gr.Request) -> None:  # in the loop's thread, as the line wants it
        page.turns.stop(_visitor(request))

    compared = _attended(page, parts, "compare", compare)
    busy = {"show_progress_on": parts["slider"], **QUEUED}
    parts["run"].click(compared, inputs, [*outputs, *status], **busy)
    blocks.load(compared, inputs, [*outputs, *status], **busy)
    parts["cut"].click(
        _attended(page, parts, "cutout", cut), [photo, right, drawn, file], [parts["cutout"], *status], **QUEUED
    )
    parts["stop"].click(stop, **QUICK)
    parts["place"].change(lambda at: gr.ImageSlider(slider_position=at), parts["place"], parts["slider"], **QUICK)
    _wire_task(page, blocks, parts, outputs)
    _wire_kernels(page, parts, inputs, status)


def _visitor(request: gr.Request) -> str:
    return request.session_hash or secrets.token_hex(8)


def _attended(
    page: Page, parts: dict[str, Any], kind: str, work: Callable[..., Iterator[dict[Any, Any]]], quiet: bool = False
) -> Callable[..., AsyncGenerator[dict[Any, Any]]]:
    """An event's function that does the work when the visitor's turn has come.

    Until then, and between the work's steps, it says how things stand, unless it is to be `quiet`.
    """
    stop, state = parts["stop"], parts["state"]

    def told(words: str, busy: bool) -> dict[Any, Any]:
        return {stop: gr.Button(interactive=busy), state: STATE.format(words)}

    async def attended(request: gr.Request, *inputs: Any) -> AsyncGenerator[dict[Any, Any]]:
        words, latest = "", {parts["map"]: gr.skip()}
        try:
            async with aclosing(page.turns.attend(_visitor(request), kind, lambda s: work(s, *inputs))) as steps:
                async for found in steps:
                    if not isinstance(found, Standing):
                        yield (latest := found)
                    else:  # an input that is skipped after its value came would lose its file's path in the browser
                        yield latest if quiet else told(_standing(found), True)
        except Full as error:
            raise refusal(str(error)) from error
        except Replaced:  # the newer one says how things stand
            return
        except GivenUp:
            words = "Stopped"
        except gr.Error:
            yield latest if quiet else told("", False)
            raise
        yield latest if quiet else told(words, False)

    return attended


STATE = '<span role="status">{}</span>'


def _standing(found: Standing) -> str:
    return "Computing" if found.before is None else f"Waiting: {found.before} before you"


def _wire_task(page: Page, blocks: gr.Blocks, parts: dict[str, Any], outputs: list[Any]) -> None:
    """What follows from another task or photograph."""

    def switch(task: str, photo: str | None) -> dict[Any, Any]:
        names, matting = page.choices[task], task == MATTE
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

    def place(stop: threading.Event, photo: str | None) -> Iterator[dict[Any, Any]]:
        picture = page.backdrop(photo, stop=stop)
        yield {parts["map"]: picture, parts["drawn"]: picture, parts["file"]: None}

    names = ("left", "right", "kernels", "about", "trimap", "cut", "cutout", "photo", "shipped")
    photo = parts["photo"]
    parts["task"].change(switch, [parts["task"], photo], [*outputs, *(parts[name] for name in names)], **QUICK)
    parts["shipped"].input(lambda title: str(page.shipped[title]), parts["shipped"], photo, **QUICK)
    placed = _attended(page, parts, "place", place, quiet=True)
    gr.on([photo.change, blocks.load], placed, photo, [parts["map"], parts["drawn"], parts["file"]], **QUEUED)


def _wire_kernels(page: Page, parts: dict[str, Any], inputs: list[Any], status: list[Any]) -> None:
    """A point, by a click or by numbers."""

    def look(stop: threading.Event, *chosen: Any) -> Iterator[dict[Any, Any]]:
        photo, task, left, right, drawn, file, whose, stage, row, column = chosen
        name = left if whose == "Left" else right
        yield {parts["kernels"]: page.kernels(photo, task, name, drawn, file, stage, (row, column), stop=stop)}

    looked = _attended(page, parts, "kernels", look)

    def clicked(picture: np.ndarray, event: gr.SelectData) -> list[float]:
        return [round(100 * (at + 0.5) / side, 1) for at, side in zip(event.index[::-1], picture.shape, strict=False)]

    asked = [*inputs, *(parts[name] for name in ("whose", "stage", "row", "column"))]
    at = parts["map"].select(clicked, parts["map"], [parts["row"], parts["column"]], **QUICK)
    at.then(looked, asked, [parts["kernels"], *status], **QUEUED)
    parts["look"].click(looked, asked, [parts["kernels"], *status], **QUEUED)


class OwnFiles:
    """Middleware that gives out nothing from elsewhere: Gradio would fetch the web address in `/file=` or `/proxy=`."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse such a request, pass on all others."""
        if scope["type"] == "http" and re.search(r"(file|proxy)=.*:/", scope["path"]):
            await PlainTextResponse("Only files of this page are given out", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def launch(blocks: gr.Blocks, page: Page, host: str, port: int, max_pixels: int, megabytes: int) -> None:
    """Serve the page from a thread of this process: no word to anyone else, every file from this machine."""
    Image.MAX_IMAGE_PIXELS = 2 * max_pixels  # strokes and the map, which Gradio decodes; PIL refuses twice as many
    events = 4 * (page.turns.most + 1)  # a visitor's kinds of work; they wait in the page's line, not in Gradio's
    blocks.queue(max_size=events, default_concurrency_limit=None)
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        max_file_size=f"{megabytes}mb",
        max_threads=events,
        state_session_capacity=SESSIONS,
        footer_links=[],
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        prevent_thread_lock=True,
        enable_monitoring=False,
        run_history=False,
        app_kwargs={"middleware": [Middleware(OwnFiles)]},
    )
