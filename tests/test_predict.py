import errno
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from fadeup.predict import find_photos, overlay, segment, segment_photo, segment_photos
from fadeup.predict import photos as files

PALETTE = np.array([[0, 0, 0], [250, 0, 0], [0, 0, 250]], np.uint8)
CLASSES = ("ground", "red", "blue")


class Brightest(nn.Module):
    """Logits of half the input's size: 0.2 for the ground, the red and the blue channel."""

    def forward(self, x):
        self.seen = x
        x = F.avg_pool2d(x, 2)
        return torch.stack([torch.full_like(x[:, 0], 0.2), x[:, 0], x[:, 2]], dim=1)


class Fixed(nn.Module):
    """The same logits for every photo."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        self.mode = self.training
        return self.logits


def to_even(photo):
    """A transform that changes the size."""
    return F.interpolate(photo[None] / 255, (64, 96), mode="bilinear", antialias=True)[0]


def scene(height, width):
    """The left third is ground, then red, then blue."""
    photo = torch.full((3, height, width), 10, dtype=torch.uint8)
    photo[0, :, width // 3 : 2 * width // 3] = 240
    photo[2, :, 2 * width // 3 :] = 240
    return photo


def save(path, photo, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(path, **options)
    return path


def run(photos, out, model=None, **options):
    arguments = {"transform": to_even, "palette": PALETTE, "classes": CLASSES} | options
    return segment_photos(model or Brightest(), photos, out, **arguments)


@given(
    st.integers(1, 7), st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9)
)
def test_labels_equal_those_of_the_resized_logits(classes, h, w, height, width, seed):
    logits = torch.randn(1, classes, h, w, generator=torch.Generator().manual_seed(seed))
    labels = segment_photo(Fixed(logits), scene(height, width), to_even).long()
    resized = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0]
    assert labels.shape == (height, width)
    assert torch.allclose(resized.gather(0, labels[None])[0], resized.amax(0), rtol=0, atol=1e-5)  # a tie, or the same
    assert (labels != resized.argmax(0)).sum() <= 1


@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
def test_strips_do_not_show(rows, monkeypatch):
    logits = torch.randn(1, 5, 9, 11)
    whole = segment_photo(Fixed(logits), scene(61, 50), to_even)
    monkeypatch.setattr(segment, "STRIP", rows * 5 * 50)
    assert torch.equal(segment_photo(Fixed(logits), scene(61, 50), to_even), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (47, 91), (64, 96)])
def test_the_photo_s_own_size_comes_back(size):
    model = Brightest()
    labels = segment_photo(model, scene(*size), to_even)
    assert labels.shape == size
    assert labels.dtype == torch.uint8
    assert model.seen.shape == (1, 3, 64, 96)
    if size[1] >= 90:
        middle = labels[size[0] // 2]
        assert [int(middle[size[1] * part // 6]) for part in (1, 3, 5)] == [0, 1, 2]


def test_half_precision_logits():
    logits = torch.randn(1, 5, 9, 11, dtype=torch.bfloat16)
    expected = segment_photo(Fixed(logits.float()), scene(30, 20), to_even)
    assert torch.equal(segment_photo(Fixed(logits), scene(30, 20), to_even), expected)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_only_meanwhile(training):
    model = Fixed(torch.randn(1, 3, 4, 4)).train(training)
    segment_photo(model, scene(8, 8), to_even)
    assert model.mode is False
    assert model.training is training


MEMORY = """
import torch
from fadeup.bench import peak_memory
from fadeup.predict import segment_photo
torch.set_num_threads(1)
class Fixed(torch.nn.Module):
    def forward(self, x): return torch.randn(1, 150, 32, 48, generator=torch.Generator().manual_seed(0))
segment_photo(Fixed(), torch.zeros(3, 10, 10, dtype=torch.uint8), lambda x: x)
print(peak_memory(lambda: segment_photo(Fixed(), torch.zeros(3, 800, 1200, dtype=torch.uint8), lambda x: x)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux only")
def test_memory_does_not_hold_the_resized_logits():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 150, "megabytes; the resized logits would take 576"


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (torch.zeros(3, 4, 5), r"photo must be uint8 \(3, height, width\), got torch.float32 \(3, 4, 5\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"photo must be uint8 .* got torch.uint8 \(4, 5, 3\)"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), r"photo must be uint8 .* got torch.uint8 \(3, 0, 5\)"),
    ],
)
def test_bad_photos(photo, message):
    with pytest.raises(ValueError, match=message):
        segment_photo(Brightest(), photo, to_even)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(3, 4, 5), r"model must give logits \(1, classes, height, width\), got \(3, 4, 5\)"),
        (torch.zeros(2, 3, 4, 5), r"model must give logits .* got \(2, 3, 4, 5\)"),
        (torch.zeros(1, 256, 4, 5), "model must give at most 255 classes, got 256"),
        (torch.full((1, 3, 4, 5), torch.nan), "model must give finite logits, got NaN or infinity; try float32"),
    ],
)
def test_bad_logits(logits, message):
    with pytest.raises(ValueError, match=message):
        segment_photo(Fixed(logits), scene(6, 6), to_even)


def test_overlay_by_hand():
    photo = torch.full((3, 2, 6), 100, dtype=torch.uint8)
    labels = torch.tensor([[1, 1, 1, 2, 2, 2]] * 2, dtype=torch.uint8)
    out = overlay(photo, labels, PALETTE, 0.5)
    assert out[:, 0].T.tolist() == [[175, 50, 50]] * 2 + [[88, 25, 25], [25, 25, 88]] + [[50, 50, 175]] * 2
    assert torch.equal(out[:, 1], out[:, 0])  # no line along the photo's edge


def test_overlay_leaves_the_ignored_uncoloured():
    photo = torch.randint(256, (3, 300, 7), dtype=torch.uint8)
    labels = torch.full((300, 7), 255, dtype=torch.uint8)
    assert torch.equal(overlay(photo, labels, PALETTE), photo)
    labels[260:] = 1
    out = overlay(photo, labels, PALETTE, 1.0)
    assert torch.equal(out[:, :259], photo[:, :259])
    assert out[:, 261:].flatten(1).unique(dim=1).flatten().tolist() == [250, 0, 0]


@pytest.mark.parametrize("opacity", [0.0, 1.0])
def test_overlay_at_both_ends(opacity):
    photo = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
    out = overlay(photo, torch.full((4, 5), 2, dtype=torch.uint8), PALETTE, opacity)
    assert torch.equal(
        out, torch.tensor([0, 0, 250], dtype=torch.uint8)[:, None, None].expand(3, 4, 5) if opacity else photo
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"labels": torch.zeros(4, 6, dtype=torch.uint8)},
            r"labels must be uint8 \(4, 5\) like photo, got torch.uint8 \(4, 6\)",
        ),
        ({"labels": torch.zeros(4, 5).long()}, r"labels must be uint8 \(4, 5\) like photo, got torch.int64"),
        ({"labels": torch.full((4, 5), 3, dtype=torch.uint8)}, "labels must be 0 to 2 or 255, as palette has .* got 3"),
        ({"opacity": 1.5}, "opacity must be 0 to 1, got 1.5"),
        ({"palette": PALETTE.astype(float)}, r"palette must be uint8 \(1 to 255, 3\), got float64 \(3, 3\)"),
        ({"palette": np.zeros((256, 3), np.uint8)}, r"palette must be uint8 \(1 to 255, 3\), got uint8 \(256, 3\)"),
    ],
)
def test_bad_overlays(changed, message):
    arguments = {"labels": torch.zeros(4, 5, dtype=torch.uint8), "palette": PALETTE, "opacity": 0.5} | changed
    with pytest.raises(ValueError, match=message):
        overlay(torch.zeros(3, 4, 5, dtype=torch.uint8), **arguments)


def test_photos_become_labels_and_overlays(tmp_path):
    photo = scene(40, 90)
    save(tmp_path / "in" / "a.png", photo)
    save(tmp_path / "in" / "b.jpg", scene(31, 60), quality=95)
    reported = []
    results = run(find_photos([tmp_path / "in"]), tmp_path / "new" / "out", on_photo=reported.append)
    assert results == reported
    assert [result.photo.name for result in results] == ["a.png", "b.jpg"]
    assert sorted(path.name for path in (tmp_path / "new" / "out").glob("[!.]*")) == [
        "a.label.png", "a.overlay.png", "b.label.png", "b.overlay.png",
    ]  # fmt: skip
    expected = segment_photo(Brightest(), photo, to_even)
    with Image.open(results[0].label) as label, Image.open(results[0].overlay) as coloured:
        assert label.mode == "P"
        assert np.array_equal(np.asarray(label), expected.numpy())
        assert np.array_equal(np.asarray(label.convert("RGB")), PALETTE[expected.numpy()])
        assert np.array_equal(np.asarray(coloured), overlay(photo, expected, PALETTE).permute(1, 2, 0).numpy())
    assert results[0].shares.keys() == set(CLASSES)
    assert sum(results[0].shares.values()) == pytest.approx(1)
    assert results[0].shares["red"] == expected.eq(1).sum().item() / expected.numel()
    assert not results[0].error


def test_rotated_photos_are_labelled_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = save(tmp_path / "a.jpg", scene(40, 90), exif=exif)
    with Image.open(run([path], tmp_path)[0].label) as label:
        assert label.size == (40, 90)
        assert [label.getpixel((20, y)) for y in (10, 45, 80)] == [0, 1, 2]


def test_a_broken_photo_is_reported_and_the_others_go_on(tmp_path):
    first, last = (save(tmp_path / name, scene(20, 30)) for name in ("a.png", "z.png"))
    cut = tmp_path / "cut.png"
    cut.write_bytes(first.read_bytes()[:50])
    results = run([first, cut, tmp_path / "gone.png", last], tmp_path / "out")
    assert [bool(result.error) for result in results] == [False, True, True, False]
    assert "cut.png" in results[1].error
    assert "gone.png" in results[2].error
    assert results[1].shares == {}
    assert sorted(path.stem for path in (tmp_path / "out").glob("[!.]*")) == [
        "a.label",
        "a.overlay",
        "z.label",
        "z.overlay",
    ]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError()])
def test_a_photo_that_the_network_cannot_take_is_reported(tmp_path, error):
    class Failing(nn.Module):
        def forward(self, x):
            raise error

    path = save(tmp_path / "a.png", scene(20, 30))
    [result] = run([path], tmp_path / "out", Failing())
    assert result.error == f"{path}: {error or 'MemoryError'}"


def test_more_classes_than_colours_are_reported(tmp_path):
    logits = torch.zeros(1, 4, 5, 5)
    logits[:, 3] = 1
    [result] = run([save(tmp_path / "a.png", scene(20, 30))], tmp_path / "out", Fixed(logits))
    assert "labels must be 0 to 2 or 255" in result.error


def test_results_are_not_overwritten_unless_asked(tmp_path):
    path = save(tmp_path / "a.png", scene(20, 30))
    [first] = run([path], tmp_path / "out")
    content = first.label.read_bytes()
    other = Fixed(torch.zeros(1, 3, 4, 4))
    with pytest.raises(
        ValueError, match=r"out must not hold these photos' results, got a.label.png and 1 more; set over"
    ):
        run([path], tmp_path / "out", other)
    assert first.label.read_bytes() == content
    run([path], tmp_path / "out", other, overwrite=True)
    assert first.label.read_bytes() != content


def test_photos_of_one_name_are_refused(tmp_path):
    pair = [save(tmp_path / "x" / "a.png", scene(20, 30)), save(tmp_path / "y" / "A.jpg", scene(20, 30))]
    with pytest.raises(ValueError, match=r"photos must have different names .* got .*a.png and .*A.jpg; rename one"):
        run(pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_photo_is_never_replaced_by_a_result(tmp_path):
    pair = [save(tmp_path / name, scene(20, 30)) for name in ("a.png", "a.overlay.png")]
    content = pair[1].read_bytes()
    with pytest.raises(ValueError, match=r"must be another folder, got one where a.overlay.png is itself a picture"):
        run(pair, tmp_path, overwrite=True)
    assert pair[1].read_bytes() == content


def test_a_full_disk_names_the_file_and_keeps_what_was_finished(tmp_path, monkeypatch):
    photos = [save(tmp_path / name, scene(20, 30)) for name in ("a.png", "b.png")]
    write = files.write

    def limited(path, content):
        if path.name.startswith("b"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(files, "write", limited)
    with pytest.raises(OSError, match=r"b.label.png must be a file that can be written, got .*No space left"):
        run(photos, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["a.label.png", "a.overlay.png"]


def test_classes_and_palette_belong_together(tmp_path):
    with pytest.raises(ValueError, match="classes must be 3 names, one for each colour of palette, got 2"):
        run([], tmp_path, classes=("ground", "red"))
    with pytest.raises(ValueError, match="opacity must be 0 to 1, got -1"):
        run([], tmp_path, opacity=-1)


def test_folders_are_searched_for_photos(tmp_path):
    folder = tmp_path / "in"
    names = ["b.JPG", "a.png", "c.webp", ".hidden.png", "notes.txt"]
    names += [f"a.{result}.png" for result in ("label", "overlay", "alpha", "cutout", "composite")]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "sub.png").mkdir()
    found = find_photos([folder, tmp_path / "in" / "b.JPG"])
    assert [path.name for path in found] == ["a.png", "b.JPG", "c.webp"]
    assert [path.name for path in find_photos([folder / "notes.txt", str(folder)])][:2] == ["notes.txt", "a.png"]


def test_no_photos(tmp_path):
    with pytest.raises(ValueError, match=r"must hold photos \(.*\.jpg.*\), got none"):
        find_photos([tmp_path])
    with pytest.raises(
        FileNotFoundError, match=r"photos must be files or folders, got .*gone.png, which does not exist"
    ):
        find_photos([tmp_path / "gone.png"])
    with pytest.raises(ValueError, match="photos must be at least one, got none; name files or folders"):
        find_photos([])
