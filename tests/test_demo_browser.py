"""The page as people use it: in a real browser, on a desk and on a phone, with the keyboard, with wrong files."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fadeup.data.matting import png
from fadeup.kernels import native
from fadeup.predict import save_trained
from fadeup.recipes import ColourReconstruction

pytest.importorskip("gradio", reason="needs gradio: pip install 'fadeup[demo]'")
httpx = pytest.importorskip("httpx", reason="comes with gradio")
load_page = pytest.importorskip("load_page", reason="needs httpx, which comes with gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "build" / "screenshots"
"""What the page looked like: kept by CI, and copied into docs/images by `make screenshots`."""
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT = 120_000
"""Milliseconds; the machines that run this are shared."""
HOSTILE = "<img src=x onerror=document.title=1>"
"""Name of a network and of a file that is to stay a name."""
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def start_server(folder: Path, *more: str) -> tuple[subprocess.Popen, str]:
    """`fadeup demo` in an empty home and an empty folder; the process, and its address once it says it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name in ("home", "cwd", "tmp"):
        (folder / name).mkdir()
    (folder / "cwd" / "secret.txt").write_text("not for visitors")
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "GRADIO_TEMP_DIR")}
    environment |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "FADEUP_CACHE": str(native.cache_folder()),  # the kernels are built once for all tests
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "fadeup", "demo", "--port", str(port), *more],
        cwd=folder / "cwd",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line == f"http://127.0.0.1:{port}", line + process.stdout.read()
    return process, line


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that the server runs in."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def address(place):
    folder = place / HOSTILE
    folder.mkdir()
    recipe = ColourReconstruction()
    save_trained(
        folder / "model.safetensors", recipe, recipe.model("nearest"), upsampler="nearest", seed=0, scores={"psnr": 1.0}
    )
    process, address = start_server(place, "--megabytes", "5", "--models", str(folder))
    yield address
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def visiting(browser, address, name):
    """A function that opens the page in a context of its own.

    How each page looked at the end is kept. Fails where it asked anyone else for anything, or raised an error.
    """
    contexts, outside, errors = [], [], []

    def open_page(viewport=DESK):
        context = browser.new_context(viewport=viewport, accept_downloads=True)
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for number, context in enumerate(contexts):
        shot(context.pages[0], f"{name}-{number}", full_page=True)
        context.close()
    assert not outside
    assert not errors


@pytest.fixture
def visit(browser, address, request):
    with visiting(browser, address, request.node.name) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def desk(browser, address):
    """A page with its first comparison, for tests that leave photograph, task and upsamplers as they are."""
    with visiting(browser, address, "desk") as open_page:
        page = open_page()
        compared(page)
        yield page


def compared(page) -> None:
    """Wait for the last part of a comparison."""
    page.locator("#slider img").first.wait_for()
    page.locator("#measured tr").nth(2).wait_for()
    page.locator("#gates img").wait_for(state="attached")  # it is loaded when it comes into view


def ready(page) -> None:
    """Stop the first comparison, or wait for it where it is done already."""
    page.wait_for_function("""() => {
        document.querySelector('#stop')?.click();
        return document.querySelector('#state')?.textContent.includes('Stopped')
            || document.querySelector('#gates img');
    }""")


def compare(page) -> None:
    """Compare anew, and wait for both results."""
    before = comparison(page)
    page.locator("#run").click()
    page.wait_for_function(
        """before => {
            const table = document.querySelector('#measured table');
            return table && table.dataset.comparison !== before && table.rows.length === 3;
        }""",
        arg=before,
    )
    page.locator("#difference img").wait_for(state="attached")


def comparison(page) -> str | None:
    """Which comparison is shown."""
    return page.evaluate("document.querySelector('#measured table')?.dataset.comparison")


def choose(page, name: str, value: str) -> None:
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=value, exact=True).click()


def upload(page, path: Path) -> None:
    """Another photograph in place of the present one."""
    remove = page.locator("#photo button[aria-label='Clear'], #photo button[aria-label='Remove Image']")
    if remove.count():
        remove.first.click()
    page.locator("#photo input[type=file]").set_input_files(path)


def placed(page, stem: str) -> None:
    """Wait until a photograph has come to all its places: there it can be clicked and painted on."""
    page.locator(f"#map img[src*='{stem}']").wait_for(state="attached")


def matte(page) -> None:
    """Choose matting, and wait for the dandelion that comes with it."""
    page.get_by_label("Matte").check()
    placed(page, "dandelion")
    page.locator("#drawn canvas").first.wait_for()


def told(page, words: str) -> None:
    """Wait for a message of these words; it goes by itself."""
    page.locator(".toast-body", has_text=re.compile(words)).first.wait_for(state="attached")


def shot(page, name: str, **options) -> None:
    """Keep how a page, or a part of it, looks."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.jpg", type="jpeg", quality=82, **options)


def test_a_first_picture_is_there_without_a_click(desk):
    page = desk
    table = page.locator("#measured").inner_text()
    assert re.search(r"bilinear \(left\)\s+[\d.]+ s\s+\d+ MiB\s+3\.01 M\s+[\d.]+ % right", table), table
    assert re.search(r"fade \(right\)\s+[\d.]+ s\s+\d+ MiB\s+3\.14 M\s+[\d.]+ % right", table), table
    assert "water" in page.locator("#legend").inner_text()
    assert "256 × 256" in page.locator("#note").inner_text()
    page.locator("#map img").wait_for()
    shot(page, "demo")
    shot(page, "demo-whole", full_page=True)


def test_the_line_moves_by_a_number(desk):
    page = desk
    before = page.locator("#slider").inner_html()
    box = page.locator("#place input[type=number]")
    box.fill("20")
    box.press("Enter")
    page.wait_for_function("before => document.querySelector('#slider').innerHTML !== before", arg=before)
    left, width = page.evaluate("""() => {
        const outer = document.querySelector('#slider .slider-wrap, #slider [role=none]').getBoundingClientRect();
        const line = document.querySelector('#slider .inner').getBoundingClientRect();
        return [line.x + line.width / 2 - outer.x, outer.width];
    }""")
    assert left / width < 0.45


def test_a_click_shows_the_kernels_of_a_point(desk):
    page = desk
    picture = page.locator("#map img")
    picture.wait_for()
    box = picture.bounding_box()
    picture.click(position={"x": 0.25 * box["width"], "y": 0.75 * box["height"]})
    page.locator("#kernels img").wait_for()
    assert float(page.locator("#row input").input_value()) == pytest.approx(75, abs=1.5)
    assert float(page.locator("#column input").input_value()) == pytest.approx(25, abs=1.5)
    shot(page.locator("#kernels-part"), "demo-kernels")


def test_a_network_without_kernels_says_so(desk):
    page = desk
    page.get_by_label("Left", exact=True).last.check()
    page.locator("#look").click()
    told(page, "bilinear has no kernels to show")


def test_results_are_taken_away_as_files(desk, tmp_path):
    page = desk
    with page.expect_download() as download:
        page.locator("#download-right").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "band11-row2-fade-labels.png"
    with Image.open(path) as labels:
        assert labels.mode == "P"
        assert labels.size == (256, 256)
        assert set(np.unique(labels)) <= set(range(6))


def test_a_phone_shows_everything_within_its_width(visit):
    page = visit(PHONE)
    compared(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    matte(page)
    compare(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.evaluate("window.scrollTo(0, 0)")
    shot(page, "demo-phone", full_page=True)


def test_the_keyboard_alone_does(visit):
    page = visit(DESK)
    ready(page)

    def walk(selector: str) -> None:
        """Tab until the part has the focus."""
        for _ in range(80):
            if page.evaluate("s => !!document.activeElement.closest(s)", selector):
                return
            page.keyboard.press("Tab")
        pytest.fail(f"{selector} is not reached by the Tab key")

    walk("#shipped")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    walk("#task")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.get_by_label("Matte").is_checked()
    placed(page, "dandelion")
    page.locator("#drawn canvas").first.wait_for()
    walk("#right")
    page.keyboard.press("Control+A")
    page.keyboard.type("carafe")
    page.keyboard.press("Enter")
    walk("#run")
    page.keyboard.press("Enter")
    page.locator("#measured", has_text="carafe (right)").wait_for()
    walk("#place")
    for selector in ("#row", "#column"):
        walk(selector)
        page.keyboard.press("Control+A")
        page.keyboard.type("40")
    walk("#look")
    page.keyboard.press("Enter")
    page.locator("#kernels img").wait_for()
    assert page.locator("#row input").input_value() == "40"


def test_a_trimap_is_painted(visit, tmp_path):
    page = visit()
    ready(page)
    matte(page)
    picture = tmp_path / "square.png"
    pixels = np.full((200, 300, 3), 40, np.uint8)
    pixels[60:140, 100:200] = 220
    Image.fromarray(pixels).save(picture)
    upload(page, picture)
    placed(page, "square")
    page.locator("#run").click()
    told(page, "trimap must be drawn or uploaded")
    canvas = page.locator("#drawn canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    for step in range(20):
        page.mouse.move(middle[0] + 3 * (step % 5) - 6, middle[1] + step - 10)
    page.mouse.up()
    page.wait_for_timeout(500)
    compare(page)
    shot(page, "demo-trimap", full_page=True)
    with page.expect_download() as download:
        page.locator("#download-left").click()
    download.value.save_as(tmp_path / "alpha.png")
    with Image.open(tmp_path / "alpha.png") as alpha:
        values = np.array(alpha)
    assert values.shape == (200, 300)
    assert values[0].max() == 0  # what was not painted is background
    assert values.max() == 255


def test_a_trimap_comes_as_a_file(visit, tmp_path):
    page = visit()
    ready(page)
    matte(page)
    mask = np.zeros((440, 600), np.uint8)
    mask[100:300, 200:400] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:-1]).save(tmp_path / "wrong.png")
    page.locator("#trimap-file input[type=file]").set_input_files(tmp_path / "wrong.png")
    page.locator("#trimap-file", has_text="wrong").wait_for()
    page.locator("#run").click()
    told(page, r"wrong\.png must be 440 x 600 like its photo, got 439 x 600")
    page.locator("#trimap-file button[aria-label='Clear'], #trimap-file button[title='Clear']").first.click()
    page.locator("#trimap-file input[type=file]").set_input_files(tmp_path / "mask.png")
    page.locator("#trimap-file", has_text="mask").wait_for()
    compare(page)


def test_wrong_and_huge_files_are_refused_in_words(visit, tmp_path):
    page = visit()
    ready(page)
    words = tmp_path / "words.png"
    words.write_text("not a picture <b>at all</b>")
    upload(page, words)
    told(page, r"words\.png must be a whole picture, got 27 bytes that do not decode")
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(bomb)  # 50 kB that would be 1.2 GB
    upload(page, bomb)
    told(page, r"bomb\.png must have at most 89478485 pixels, got (more|20000 x 20000)")
    large = tmp_path / "large.bmp"
    Image.new("RGB", (1500, 1500)).save(large)  # 6.7 MB
    upload(page, large)
    told(page, "[Ff]ile.*(size|large|exceeds)")
    choose(page, "shipped", "Korea, from space")  # nothing is broken
    placed(page, "band15-row2")
    compare(page)
    page.locator("#note", has_text="band15-row2.jpg").wait_for()


def test_a_large_photograph_is_made_smaller_and_stopped_by_the_keyboard(visit, tmp_path):
    page = visit()
    ready(page)
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(noise).resize((3000, 2000), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg")
    upload(page, tmp_path / "large.jpg")
    placed(page, "large")
    before = comparison(page)
    page.locator("#run").focus()
    page.keyboard.press("Enter")
    note = page.locator("#note", has_text="large.jpg")
    note.wait_for()
    assert note.inner_text().strip() == "large.jpg: 3000 × 2000, made smaller to 1500 × 1000 for this page"
    page.locator("#state", has_text="Computing").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press("Enter")
    page.locator("#state", has_text="Stopped").wait_for()
    assert page.locator("#stop").is_disabled()
    assert comparison(page) == before or not page.locator("#difference img").count()


def test_names_are_text(visit, tmp_path):
    page = visit()
    ready(page)
    page.get_by_label("Reconstruct").check()
    choose(page, "right", HOSTILE)
    Image.new("RGB", (64, 48), "red").save(tmp_path / f"{HOSTILE}.png")
    upload(page, tmp_path / f"{HOSTILE}.png")
    page.locator("#map img[src*='onerror']").wait_for(state="attached")
    compare(page)
    assert f"{HOSTILE} (right)" in page.locator("#measured").inner_text()
    assert "onerror" in page.locator("#note").inner_text()
    page.get_by_label("Right", exact=True).last.check()
    page.locator("#look").click()
    told(page, "onerror.* has no kernels to show")
    assert not page.locator("img[src=x]").count()
    assert page.title() == "fadeup"


def test_two_visitors_see_their_own(visit):
    one, other = visit(), visit()
    compared(one)
    compared(other)
    choose(one, "right", "carafe")
    choose(other, "right", "a2u")
    for page in (one, other):
        page.locator("#run").click()
    one.locator("#measured", has_text="carafe (right)").wait_for()
    other.locator("#measured", has_text="a2u (right)").wait_for()
    assert "a2u" not in one.locator("#measured").inner_text()


def test_only_its_own_files_are_served(address, place):
    folder = next((place / "tmp").glob("fadeup-demo-*"))
    secret = str(place / "cwd" / "secret.txt")
    for path in (
        "/etc/passwd",
        "/proc/self/environ",
        str(ROOT / "pyproject.toml"),
        "secret.txt",
        secret,
        f"{folder}/photographs/../../../cwd/secret.txt",
        f"{folder}/photographs/..%2f..%2f..%2fcwd%2fsecret.txt",
        f"{folder}/photographs/%2e%2e/%2e%2e/%2e%2e/cwd/secret.txt",
        "%2fetc%2fpasswd",
        "file:///etc/passwd",
        "http://example.com/",
        "https:%2f%2fexample.com/",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")
        assert refused.value.code in (403, 404), path
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/gradio_api/proxy=https://example.com/")
    assert refused.value.code == 403
    assert json.load(urllib.request.urlopen(f"{address}/gradio_api/info"))["named_endpoints"] == {}
    for path in ("/etc/passwd", secret, f"{folder}/photographs/../../../cwd/secret.txt"):
        asked(address, {"path": path, "meta": {"_type": "gradio.FileData"}})
    told = asked(address, {"path": "http://example.com/a.png", "meta": {"_type": "gradio.FileData"}})
    assert "Files must be uploaded, got a web address" in told


def ran(coroutine):
    """What it returns; in a thread of its own, since playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, coroutine).result()


def asked(address: str, photo: dict) -> str:
    """The refusal of a comparison of that photograph."""

    async def ask() -> str:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            visitor = load_page.Visitor(client, (await client.get("/config")).json())
            event = await visitor.ask("run.click", photo, "segment", "bilinear", "fade", None, None)
            async with aclosing(visitor.messages()) as messages:
                async for message in messages:
                    if message["msg"] == "process_completed" and message["event_id"] == event:
                        assert not message["success"]
                        assert not re.search("root:|not for visitors", json.dumps(message))
                        return str(message["output"]["error"])
        raise AssertionError("no answer")

    return ran(ask())


def test_an_upload_stays_in_the_page_s_folder(address, place):
    async def upload() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            visitor = load_page.Visitor(client, (await client.get("/config")).json())
            return await visitor.upload("../../../../cwd/x.png", b"1"), await visitor.upload("x.bmp", bytes(5_500_000))

    forged, large = ran(upload())
    path = Path(forged.json()[0])
    assert path.resolve() == path
    assert path.is_relative_to(next((place / "tmp").glob("fadeup-demo-*")))
    assert path.name == "x.png"
    assert large.status_code == 413


def test_visitors_at_once_have_no_errors(address, monkeypatch):
    """One round of what scripts/load_page.py does for ten minutes, with small files and more who leave."""
    monkeypatch.setattr(load_page, "LEFT", 0.3)
    for name in ("large.jpg", "middle.jpg", "bomb.png", "too-large.bmp"):
        monkeypatch.delitem(load_page.FILES, name)
    seen = load_page.Seen()

    async def visit() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=300) as client:
            config = (await client.get("/config")).json()
            visitors = [load_page.Visitor(client, config) for _ in range(6)]
            lives = [load_page.Life(n, visitor, seen, random.Random(n)) for n, visitor in enumerate(visitors)]
            await asyncio.gather(*(life.compare() for life in lives))

    ran(visit())
    assert not seen.errors
    ended = sum(count for name, count in seen.counts.items() if name.startswith(("left", "refused")))
    assert seen.counts["comparisons asked"] == 6 == ended + sum(seen.done.values())
    assert seen.done
    assert ended


@pytest.fixture
def busy(tmp_path, monkeypatch):
    """`busy(waiting)` serves a page from this process whose worker computes until the test ends: blocks and address."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the page lowers it for its own process
    page_module, layout = importlib.import_module("fadeup.demo.page"), importlib.import_module("fadeup.demo.layout")
    go_on, served = threading.Event(), []
    (tmp_path / "photo.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "folder").mkdir()

    def call(method, *arguments, stop=None):
        known = {
            "choices": {"segment": ["fade"], "matte": [], "reconstruct": []},
            "photographs": {"black": tmp_path / "photo.png"},
        }
        if method not in known:
            go_on.wait(60)
            raise ValueError("it is enough")
        return known[method]

    def serve(waiting):
        shared = page_module.Page(SimpleNamespace(call=call), tmp_path / "folder", waiting=waiting)
        blocks = layout.build(shared)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        layout.launch(blocks, shared, "127.0.0.1", port, 1_000_000, 5)
        served.append(blocks)
        return blocks, f"http://127.0.0.1:{port}"

    yield serve
    go_on.set()
    for blocks in served:
        blocks.close(verbose=False)


@pytest.mark.filterwarnings("ignore")  # Gradio runs in this process here, and sets an option of pandas that is going
def test_a_full_queue_says_so(browser, busy):
    _, address = busy(waiting=1)
    contexts = [browser.new_context() for _ in range(2)]
    try:
        pages = [context.new_page() for context in contexts]
        for page in pages:
            page.set_default_timeout(WAIT)
            page.goto(address)
            page.locator("#run").wait_for()
        told(pages[1], r"The page is busy, as many visitors wait as may \(1\)")
    finally:
        for context in contexts:
            context.close()


@pytest.mark.filterwarnings("ignore")  # as above
def test_of_many_tabs_the_oldest_are_forgotten(busy, monkeypatch):
    monkeypatch.setattr("fadeup.demo.layout.SESSIONS", 3)
    blocks, address = busy(waiting=1)
    with urllib.request.urlopen(f"{address}/config") as answer:
        config = json.load(answer)
    for number in range(5):
        visitor = load_page.Visitor(None, config)
        visitor.session = f"tab{number}"
        body = {"data": ["black"], "fn_index": visitor.functions["shipped.input"][0], "session_hash": visitor.session}
        request = urllib.request.Request(
            f"{address}/gradio_api/run/predict", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["data"][0]["path"].endswith("photo.png")
    assert list(blocks.state_holder.session_data) == ["tab2", "tab3", "tab4"]


def test_nothing_is_left_behind(tmp_path):
    process, address = start_server(tmp_path)
    assert urllib.request.urlopen(address).status == 200
    folders = [path.name for path in (tmp_path / "tmp").glob("fadeup-demo-*")]
    assert len(folders) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["cwd/secret.txt"]
    assert not [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("fadeup")]
