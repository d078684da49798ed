"""What the page computes, and how its worker and its command behave; the page itself is in test_demo_browser.py."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import aclosing
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fadeup.checkpoint import read_about
from fadeup.cli import main
from fadeup.data.labelled import read_photo
from fadeup.demo import EDGE, INSIDE
from fadeup.demo.studio import Studio, signed, trimap_from_strokes
from fadeup.demo.turns import Full, Replaced, Standing, Turns
from fadeup.demo.worker import GivenUp, Prediction, Worker, _serve
from fadeup.predict import save_trained
from fadeup.predict.trained import ASSETS
from fadeup.recipes import ColourReconstruction, Reconstruction


@pytest.fixture(scope="module")
def studio():
    return Studio(max_pixels=60_000)


@pytest.fixture(scope="module")
def photos(studio):
    return studio.photographs()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_networks_that_ship_are_offered_by_task(studio):
    names = ["a2u", "bilinear", "carafe", "fade"]
    assert studio.choices() == {"segment": names, "matte": names, "reconstruct": names}


@pytest.mark.parametrize("name", ["bilinear", "fade"])
def test_a_satellite_picture_is_segmented_and_scored(studio, photos, name):
    found = studio.predict("segment", name, photos["Caspian Sea, from space"])
    assert opened(found.picture).size == (244, 244)  # of 60,000 pixels at most
    assert found.result.shape == (244, 244)
    assert sum(share for _, _, share in found.classes) == pytest.approx(1)
    assert found.seconds > 0
    assert found.parameters == {"bilinear": 3_007_750, "fade": 3_144_226}[name]
    assert found.score == ""  # made smaller, so that the truth has another size


def test_the_truth_is_known_of_pictures_that_ship(photos):
    found = Studio().predict("segment", "fade", photos["Caspian Sea, from space"])
    share = float(found.score.removesuffix(" % right"))
    assert 40 < share < 90


def test_a_photograph_is_matted_by_its_own_trimap(studio, photos):
    found = studio.predict("matte", "bilinear", photos["dandelion"])
    assert found.result.shape == (209, 286)
    assert {0, 255} <= set(np.unique(found.result))
    assert not found.classes
    assert (np.array(opened(found.picture)) == found.result).all()


def test_a_photograph_is_given_back_and_scored(studio, photos):
    scores = {}
    for name in ("bilinear", "fade"):
        found = studio.predict("reconstruct", name, photos["Korea, from space"])
        assert found.result.shape == (244, 244, 3)
        scores[name] = float(found.score.split()[1])
    assert scores["fade"] > scores["bilinear"] > 15


def test_differences_are_in_colours(studio, photos):
    photo = photos["Korea, from space"]
    labels = np.zeros((244, 244), np.uint8)
    other = labels.copy()
    other[:, 100:] = 1

    def difference(*arguments) -> np.ndarray:
        return np.array(opened(studio.difference(*arguments, photo)))

    picture = difference("segment", labels, other)
    assert (picture[100, 100] == (0, 114, 178)).all()  # a boundary of the right one alone
    assert (picture[100, 20] == 255).all()
    alpha = difference("matte", labels, 255 * other)
    assert alpha[0, 0].min() > 240
    assert alpha[0, 200][2] > alpha[0, 200][0]  # purple where the right one is larger
    true = np.array(opened(studio.backdrop(photo)))
    error = difference("reconstruct", np.zeros_like(true), true)
    assert error[0, 0][0] > error[0, 0][2]  # orange where the left one is further off


def test_gates_of_both_networks_stand_beneath_each_other(studio, photos):
    photo = photos["Korea, from space"]
    one = opened(studio.gates("segment", ("bilinear", "fade"), photo))
    two = opened(studio.gates("reconstruct", ("fade",), photo))
    assert one.format == two.format == "PNG"
    assert studio.gates("segment", ("bilinear", "carafe"), photo) is None
    both = opened(studio.gates("matte", ("fade", "fade"), photos["dandelion"]))
    assert both.height == 2 * opened(studio.gates("matte", ("fade",), photos["dandelion"])).height


def test_kernels_of_a_stage_are_drawn(studio, photos):
    photo = photos["Korea, from space"]
    pictures = {
        stage: studio.kernels("segment", "fade", photo, None, stage, (0.5, 0.5)) for stage in ("finest", "coarsest")
    }
    assert pictures["finest"] != pictures["coarsest"]
    assert studio.kernels("segment", "bilinear", photo, None, "finest", (0.5, 0.5)) is None
    assert studio.kernels("reconstruct", "bilinear", photo, None, "finest", (0.5, 0.5)) is None


def test_files_are_what_the_command_line_writes(studio, photos):
    found = studio.predict("segment", "carafe", photos["Korea, from space"])
    labels = opened(studio.file("segment", "carafe", found.result))
    assert labels.mode == "P"
    assert (np.array(labels) == found.result).all()
    assert opened(studio.file("matte", "fade", found.result)).mode == "L"


def test_large_photographs_are_made_smaller(studio, tmp_path):
    Image.new("RGB", (800, 200)).save(tmp_path / "wide.png")
    assert studio.size(tmp_path / "wide.png") == ((200, 800), (122, 489))


def test_a_trimap_is_needed(studio, photos, tmp_path):
    with pytest.raises(ValueError, match="trimap must be drawn or uploaded for matting, got none"):
        studio.predict("matte", "fade", photos["Korea, from space"])
    Image.new("L", (5, 7)).save(tmp_path / "trimap.png")
    with pytest.raises(ValueError, match=r"trimap\.png must be 440 x 600 like its photo, got 7 x 5"):
        studio.predict("matte", "fade", photos["dandelion"], tmp_path / "trimap.png")


def test_an_unknown_network_is_refused(studio, photos):
    with pytest.raises(ValueError, match="upsampler must be one of a2u, bilinear, carafe, fade, got /etc/passwd"):
        studio.predict("segment", "/etc/passwd", photos["dandelion"])


def strokes(inside=None, edge=None) -> np.ndarray:
    layer = np.zeros((40, 60, 4), np.uint8)
    for area, colour in ((edge, EDGE), (inside, INSIDE)):
        if area is not None:
            layer[area] = (*colour, 255)
    return layer


def test_strokes_become_a_trimap():
    edge, inside = np.s_[10:30, 10:50], np.s_[15:25, 20:40]
    trimap = trimap_from_strokes(strokes(inside, edge), (80, 120))
    assert trimap.shape == (80, 120)
    assert trimap[0, 0] == 0
    assert trimap[21, 25] == 128
    assert trimap[40, 60] == 255


def test_without_an_edge_a_band_is_unknown():
    trimap = trimap_from_strokes(strokes(np.s_[10:30, 10:50]), (40, 60))
    assert (trimap[20, [2, 10, 13, 30]] == (0, 128, 128, 255)).all()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (strokes(), "trimap must be drawn or uploaded for matting, got none"),
        (strokes(np.s_[:, :]), "mask must have foreground .* and background, got foreground alone"),
    ],
)
def test_strokes_of_nothing_or_everything_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        trimap_from_strokes(layer, (40, 60))


def test_signed_values_are_white_at_zero():
    picture = signed(np.array([[-10.0, 0, 10]]))
    assert picture[0, 1].min() > 240
    assert picture[0, 0][2] > picture[0, 0][0]
    assert picture[0, 2][0] > picture[0, 2][2]


def trained(folder: Path, recipe: Reconstruction) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    save_trained(
        folder / "model.safetensors", recipe, recipe.model("nearest"), upsampler="nearest", seed=0, scores={"psnr": 1.0}
    )
    return folder


def test_networks_of_ones_own_are_offered(tmp_path, photos):
    run = trained(tmp_path / "mine-0.5", ColourReconstruction())
    grey = trained(tmp_path / "grey", Reconstruction())
    studio = Studio([str(run), str(grey)], max_pixels=20_000)
    assert studio.choices()["reconstruct"][-2:] == ["mine-0.5", "grey"]
    for name in ("mine-0.5", "grey"):
        assert studio.predict("reconstruct", name, photos["dandelion"]).result.shape == (121, 165, 3)
    trained(tmp_path / "more", ColourReconstruction())
    (tmp_path / "more").rename(tmp_path / "fade")
    with pytest.raises(ValueError, match="models must have names of their own, got fade twice; rename the folder"):
        Studio([str(tmp_path / "fade")])


@pytest.fixture(scope="module")
def worker():
    worker = Worker([], 1_000_000, 60)
    yield worker
    worker.close()


def test_a_call_that_is_given_up_stops_within_the_network(worker, photos, tmp_path):
    photo, stop = tmp_path / "photo.png", threading.Event()
    with Image.open(photos["dandelion"]) as dandelion:
        dandelion.resize((900, 700)).save(photo)
    asked = "predict", "reconstruct", "fade", photo
    worker.call(*asked)  # its network is loaded
    start = time.monotonic()
    whole = worker.call(*asked)
    process, took = worker._process.pid, time.monotonic() - start
    threading.Timer(0.1 * took, stop.set).start()
    with pytest.raises(GivenUp):
        worker.call(*asked, stop=stop)
    with pytest.raises(GivenUp):  # before it begins
        worker.call(*asked, stop=stop)
    assert worker._process.pid == process  # it was not ended
    assert (worker.call(*asked).result == whole.result).all()  # and no call after it is given up


def test_a_photograph_that_takes_too_long_ends_the_worker_and_no_more(worker, photos):
    assert "segment" in worker.call("choices")
    worker.seconds = 0.001
    with pytest.raises(ValueError, match=r"A photograph must be done within 0\.001 s, got longer; take a smaller"):
        worker.call("predict", "segment", "fade", photos["dandelion"])
    worker.seconds = 60
    with pytest.raises(ValueError, match="upsampler must be one of"):
        worker.call("predict", "segment", "none", photos["dandelion"])
    with pytest.raises(RuntimeError, match="AttributeError"):
        worker.call("nothing")
    worker._process.kill()
    with pytest.raises(RuntimeError, match="The computing process ended"):
        worker.call("choices")
    assert "matte" in worker.call("choices")


def test_only_the_number_of_a_call_gives_it_up(monkeypatch):
    """Within the process: every layer looks, and what was said of an earlier call does not count."""
    given_up, answers = SimpleNamespace(value=0), []
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))

    class Slow:
        def __init__(self, *_):
            pass

        def predict(self, value: int) -> str:
            network[0].register_forward_hook(lambda *_: setattr(given_up, "value", value))
            network(torch.zeros(2))
            return "whole"

    calls = iter([(1, "predict", (1,)), (2, "predict", (1,))])

    def recv():
        try:
            return next(calls)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("fadeup.demo.studio.Studio", Slow)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    hooks = dict(torch.nn.modules.module._global_forward_pre_hooks)
    try:
        _serve(SimpleNamespace(send=answers.append, recv=recv), given_up, [], 1)
    finally:
        torch.nn.modules.module._global_forward_pre_hooks.clear()
        torch.nn.modules.module._global_forward_pre_hooks.update(hooks)
    assert answers == [("done", None), ("given up", None), ("done", "whole")]


def steps(*pauses: float):
    """Work that pauses so long before each of its steps, and stops when it is told to."""

    def work(stop: threading.Event):
        for number, pause in enumerate(pauses):
            if stop.wait(pause):
                raise GivenUp
            yield number

    return work


async def everything(turns: Turns, visitor: str, kind: str, work) -> list:
    """What came of a visitor's work, without how things stood meanwhile."""
    async with aclosing(turns.attend(visitor, kind, work)) as found:
        return [one async for one in found if not isinstance(one, Standing)]


def test_turns_come_in_the_order_of_asking():
    order = []

    def noted(visitor):
        def work(stop):
            order.append(visitor)
            yield visitor

        return work

    async def visit():
        turns = Turns(5)
        asked = [everything(turns, visitor, "compare", noted(visitor)) for visitor in "abcde"]
        assert await asyncio.gather(*asked) == [[visitor] for visitor in "abcde"]
        assert not turns._line

    asyncio.run(visit())
    assert order == list("abcde")


def test_who_asks_often_gets_no_more_than_others():
    """Ten clicks of one visitor, then one of another: the other comes second."""
    order = []

    async def ask(turns, visitor, number, kind="compare"):
        def work(stop):
            order.append((visitor, number))
            yield from steps(0.05)(stop)

        try:
            await everything(turns, visitor, kind, work)
        except Replaced:
            return "replaced"

    async def visit():
        turns = Turns(5)
        clicks = []
        for number in range(10):
            clicks.append(asyncio.ensure_future(ask(turns, "often", number)))
            await asyncio.sleep(0)
            if number == 4:
                clicks.append(asyncio.ensure_future(ask(turns, "once", 0)))
                await asyncio.sleep(0)
        return await asyncio.gather(*clicks)

    ends = asyncio.run(visit())
    assert ends.count("replaced") == 9
    assert [entry for entry in order if entry[1] != 0 or entry[0] == "once"] == [("often", 9), ("once", 0)]


def test_who_asks_anew_while_it_is_computed_goes_to_the_end():
    async def visit():
        turns = Turns(5)
        first = turns.join("a", "compare")
        turns.join("b", "compare")
        again = turns.join("a", "compare")
        assert first.replaced
        assert first.stop.is_set()
        turns.leave(first)
        assert [turn.visitor for turn in turns._line] == ["b", "a"]
        last = turns.join("a", "compare")  # while waiting, the place is kept
        assert again.replaced
        turns.join("c", "compare")
        other = turns.join("a", "kernels")
        assert [turn.visitor for turn in turns._line] == ["b", "a", "c", "a"]
        assert not last.replaced
        assert not other.stop.is_set()

    asyncio.run(visit())


def test_one_visitor_too_many_is_refused():
    turns = Turns(2)
    turns.join("a", "compare")
    turns.join("b", "compare")
    turns.join("b", "kernels")  # no visitor more
    with pytest.raises(Full, match=r"The page is busy, as many visitors wait as may \(2\); try again in a minute"):
        turns.join("c", "compare")


def test_stop_ends_what_is_computed_and_what_waits():
    async def visit():
        turns = Turns(5)
        asked = [
            asyncio.ensure_future(everything(turns, *who, steps(30)))
            for who in (("a", "compare"), ("a", "kernels"), ("b", "compare"))
        ]
        await asyncio.sleep(0.1)
        turns.stop("a")
        start = time.monotonic()
        for ended in asked[:2]:
            with pytest.raises(GivenUp):
                await ended
        assert time.monotonic() - start < 10
        assert [turn.visitor for turn in turns._line] == ["b"]
        turns.stop("b")
        with pytest.raises(GivenUp):
            await asked[2]

    asyncio.run(visit())


def test_a_visitor_who_goes_takes_the_work_along():
    """Closing the handler's generator, as Gradio does when a tab is closed, is noticed by the work within a second."""
    stopped = threading.Event()

    def work(stop):
        yield "begun"
        if stop.wait(30):
            stopped.set()
        raise GivenUp

    async def visit():
        turns = Turns(5)
        async with aclosing(turns.attend("a", "compare", work)) as found:
            words = [await anext(found) for _ in range(3)]
            assert words == [Standing(None), "begun", Standing(None)]
            async with aclosing(turns.attend("b", "compare", steps(0))) as waiting:
                assert await anext(waiting) == Standing(1)
            assert len(turns._line) == 1
        assert not turns._line
        assert await asyncio.to_thread(stopped.wait, 10)

    asyncio.run(visit())


def test_a_photograph_is_decoded_once(studio, photos, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("fadeup.demo.studio.read_photo", lambda path, **more: read.append(path) or read_photo(path))
    photo = tmp_path / "photo.png"
    Image.new("RGB", (90, 70), "red").save(photo)
    for _ in range(2):
        assert studio.size(photo) == ((70, 90), (70, 90))
        studio.backdrop(photo)
    assert len(read) == 1
    first = studio.predict("segment", "fade", photo).result
    assert (studio.predict("segment", "fade", photo).result == first).all()  # nobody has written into it
    assert len(read) == 1
    Image.new("RGB", (30, 20), "blue").save(photo)
    assert studio.size(photo) == ((20, 30), (20, 30))
    assert len(read) == 2


def test_the_command_refuses_a_taken_port(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    assert f"--host and --port must be free to be listened on, got 127.0.0.1:{port}" in capsys.readouterr().err


def test_the_command_refuses_a_model_that_is_none(capsys, tmp_path, monkeypatch):
    for name in ("GRADIO_TEMP_DIR", "MPLCONFIGDIR"):  # the command sets them
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["demo", "--port", str(port), "--models", str(tmp_path / "nothing")]) == 2
    assert "model must be a run folder" in capsys.readouterr().err


@pytest.fixture
def page(tmp_path):
    """A page whose worker knows nothing but what it must."""
    module = pytest.importorskip("fadeup.demo.page", reason="needs gradio: pip install 'fadeup[demo]'")
    worker = SimpleNamespace(call=lambda method: {"choices": {"segment": ["fade"]}, "photographs": {}}[method])
    return module.Page(worker, tmp_path)


HOSTILE = """<img src=x onerror=alert(1)>"'&<script>alert(1)</script>"""


class Tags(HTMLParser):
    """The elements of a piece of HTML, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, [name for name, _ in attributes]))

    def handle_data(self, data):
        self.text += data


def test_names_are_text_and_nothing_else():
    """Those of files, networks and classes, and what errors tell of them."""
    module = pytest.importorskip("fadeup.demo.page", reason="needs gradio: pip install 'fadeup[demo]'")
    one = Prediction(b"", np.zeros(1), 0.1, None, 5, HOSTILE, ((HOSTILE, (1, 2, 3), 0.5),))
    shown = {
        "table": module._table("00", [HOSTILE], [one]),
        "legend": module._legend([one]),
        "note": module._note(HOSTILE, (1, 2), (1, 2)),
        "error": str(module.refusal(HOSTILE).message),
    }
    for part, text in shown.items():
        tags = Tags(text)
        assert HOSTILE in tags.text, part
        assert {tag for tag, _ in tags.found} <= {"div", "table", "tr", "th", "td", "span"}, part
        assert {name for _, names in tags.found for name in names} <= {"class", "style", "data-comparison"}, part


def test_a_refusal_names_files_without_their_folders(page, tmp_path):
    def call(*_, stop):
        raise ValueError(f"{tmp_path}/secret/{HOSTILE}/x.png must be a whole picture")

    page.worker.call = call
    path = tmp_path / "secret" / HOSTILE / "x.png"
    with pytest.raises(ValueError, match=r"^'x\.png must be a whole picture'$"):
        page._call(None, path, "size", path)


def aged(path: Path, seconds: float) -> Path:
    past = time.time() - seconds
    os.utime(path, (past, past))
    return path


def test_old_files_are_swept(page, tmp_path):
    old, new = (Path(page._written(Path("x.jpg"), ending, b"1")) for ending in ("old", "new"))
    (tmp_path / "0123abcd").mkdir()  # as Gradio keeps what is uploaded
    (tmp_path / "0123abcd" / "photo.jpg").write_bytes(b"1")
    shipped = aged(tmp_path / "photographs", 1e6) / "shipped.jpg"
    shipped.write_bytes(b"1")
    for path in (old, tmp_path / "0123abcd" / "photo.jpg", shipped):
        aged(path, 3601)
    page.tidy()
    assert not old.parent.exists()
    assert not (tmp_path / "0123abcd").exists()
    assert new.exists()
    assert shipped.exists()


def test_files_together_have_a_limit(page, monkeypatch):
    monkeypatch.setattr("fadeup.demo.page.KEPT_BYTES", 250)
    paths = [Path(page._written(Path("x.jpg"), str(number), bytes(100))) for number in range(5)]
    for path, age in zip(paths, (900, 800, 700, 130, 1), strict=True):
        aged(path, age)
    page.tidy()
    assert [path.exists() for path in paths] == [False, False, False, True, True]
    for path in paths[3:]:
        path.write_bytes(bytes(1000))
    page.tidy()
    assert all(path.exists() for path in paths[3:])  # someone may be at them


def test_assets_fit():
    """16 MB in all."""
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 16_000_000
    assert read_about(ASSETS / "models/reconstruction-fade.safetensors")["task"] == "reconstruction-colour"


def test_the_page_starts_without_torch():
    """Its process computes nothing; importing torch would cost it seconds, and receiving a result did once."""
    code = (
        "import pickle, sys; import fadeup.cli; from fadeup.demo import serve, worker; "
        "pickle.loads(pickle.dumps(worker.Prediction(b'', None, 0, None, 0, '', ()))); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
