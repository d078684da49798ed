"""Mattes at full size and in tiles, cut-outs and composites, with networks whose answer is known."""

import errno
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from fadeup.data.labelled import read_photo
from fadeup.data.matting import UNKNOWN, compose, trimap_from_mask
from fadeup.models.matting import MattingNet
from fadeup.predict import (
    Matter,
    composite_on,
    cut_out,
    cutout,
    find_guides,
    load_matter,
    matte,
    matte_photo,
    matte_photos,
    read_background,
    read_guide,
)
from fadeup.predict import photos as files
from fadeup.recipes import Cutouts

HALF = (0.5, 0.5, 0.5)
ONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Local(nn.Module):
    """Sees 16 pixels around each, on a grid of 16, and adds the context: a tile that is out of step shows."""

    def __init__(self):
        super().__init__()
        self.seen, self.contexts, self.asked = [], [], []

    def forward(self, image, context=None):
        self.seen.append(image)
        self.contexts.append(context)
        self.mode = self.training
        coarse = F.interpolate(F.max_pool2d(image, 16), scale_factor=16, mode="nearest")
        fine = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
        out = (0.5 * coarse + 0.5 * fine)[:, :3].mean(dim=1, keepdim=True)
        return out + (0.1 if context is None else context)

    def context(self, image):
        self.asked.append(image)
        return torch.full((1, 1, 1, 1), 0.1)


class Fixed(nn.Module):
    """The same alpha everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, image, context=None):
        return torch.full_like(image[:, :1], self.value)


def noise(height, width):
    return torch.randint(40, 180, (3, height, width), dtype=torch.uint8)


def half_known(height, width):
    """Background, unknown, foreground, a third each."""
    trimap = torch.full((height, width), UNKNOWN, dtype=torch.uint8)
    trimap[:, : width // 3], trimap[:, 2 * width // 3 :] = 0, 255
    return trimap


def unknown(height, width):
    return torch.full((height, width), UNKNOWN, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 40), (16, 48), (47, 91)])
def test_padding_is_by_reflection_and_cut_off(size):
    photo, network = noise(*size), Local()
    alpha = matte_photo(network, photo, unknown(*size), **ONE)
    padded = np.pad(photo.numpy(), ((0, 0), *((0, -side % 16) for side in size)), mode="reflect")
    [seen] = network.seen
    assert torch.allclose(seen[0, :3], torch.from_numpy(padded) / 255)
    assert alpha.shape == size
    assert torch.equal(alpha, (255 * network(seen)[0, 0, : size[0], : size[1]]).round().byte())


@pytest.mark.parametrize(("value", "expected"), [(-0.3, 0), (0.25, 64), (0.5021, 128), (1.7, 255)])
def test_known_pixels_are_kept_and_others_clipped(value, expected):
    trimap = half_known(20, 60)
    alpha = matte_photo(Fixed(value), noise(20, 60), trimap, **ONE)
    assert alpha.dtype == torch.uint8
    assert (alpha[:, :20] == 0).all()
    assert (alpha[:, 20:40] == expected).all()
    assert (alpha[:, 40:] == 255).all()


def test_input_is_normalised():
    network = Local()
    matte_photo(network, torch.full((3, 16, 16), 255, dtype=torch.uint8), unknown(16, 16), HALF, (0.25,) * 3)
    assert torch.allclose(network.seen[0][0, :3], torch.tensor(2.0))
    assert torch.allclose(network.seen[0][0, 3], torch.tensor(128 / 255))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_only_meanwhile(training):
    network = Local().train(training)
    matte_photo(network, noise(16, 16), unknown(16, 16), **ONE)
    assert network.mode is False
    assert network.training is training


@pytest.mark.parametrize("size", [(300, 520), (257, 300), (90, 900), (777, 513)])
@pytest.mark.parametrize("overlap", [64, 128, None])
def test_tiles_equal_the_whole(size, overlap):
    photo, network = noise(*size), Local()
    whole = matte_photo(network, photo, unknown(*size), **ONE)
    network.seen.clear()
    tiled = matte_photo(network, photo, unknown(*size), **ONE, tile=256, overlap=overlap)
    assert len(network.seen) > 1
    assert max(side for part in network.seen for side in part.shape[2:]) == 256
    assert (tiled.int() - whole.int()).abs().max() <= 1


def test_a_photo_of_one_tile_goes_whole():
    network = Local()
    matte_photo(network, noise(250, 256), unknown(250, 256), **ONE, tile=256)
    assert [tuple(part.shape) for part in network.seen] == [(1, 4, 256, 256)]
    assert network.contexts == [None]
    assert not network.asked


def test_context_is_taken_once_from_squares_side_by_side():
    network, photo = Local(), noise(600, 300)
    network.context = lambda image: network.asked.append(image) or image[:, :1].mean(dim=(2, 3), keepdim=True)
    network.asked = []
    matte_photo(network, photo, half_known(600, 300), **ONE, tile=256)
    assert [tuple(part.shape[2:]) for part in network.asked] == [
        (256, 256), (256, 48), (256, 256), (256, 48), (96, 256), (96, 48)
    ]  # fmt: skip
    assert all(context is network.contexts[0] for context in network.contexts)
    # Padding aside, which repeats four of 44 columns, squares count by their pixels.
    assert torch.allclose(network.contexts[0], photo[:1].float().mean() / 255, atol=2e-3)


def test_tiles_without_unknown_pixels_are_passed_over():
    network, photo = Local(), noise(1024, 1024)
    trimap = torch.zeros(1024, 1024, dtype=torch.uint8)
    trimap[500:], trimap[10:20, 195:205] = 255, UNKNOWN  # the second tile starts at 192, and its first 16 do not count
    alpha = matte_photo(network, photo, trimap, **ONE, tile=256, overlap=64)
    assert len(network.seen) == 1
    assert torch.equal(alpha[trimap != UNKNOWN], trimap[trimap != UNKNOWN])
    network.seen.clear()
    known = torch.where(trimap == UNKNOWN, 0, trimap)
    assert torch.equal(matte_photo(network, photo, known, **ONE, tile=256), known)
    assert not network.seen


@pytest.mark.parametrize(("tile", "overlap"), [(256, 128), (288, 128), (800, 384), (1024, 512), (2048, 512)])
def test_tiles_overlap_by_half_of_them_at_most(tile, overlap):
    assert matte.check_tile(Local(), tile, None) == overlap


def test_tiles_end_where_the_padded_whole_does():
    network = Local()
    matte_photo(network, noise(90, 900), unknown(90, 900), **ONE, tile=256, overlap=64)
    assert [tuple(part.shape[2:]) for part in network.seen] == [(96, 256)] * 4 + [(96, 240)]


@given(st.integers(1, 150), st.integers(8, 30), st.data())
def test_tiles_cover_and_fit_together(size, tile, data):
    size, tile = 16 * size, 32 * tile
    overlap = 32 * data.draw(st.integers(2, tile // 64))
    total, before = torch.zeros(size), 0
    for index, (place, weight) in enumerate(matte.tiles(size, tile, overlap)):
        assert place.start % 32 == 0
        assert place.stop - place.start <= tile
        assert index == 0 or before - place.start >= overlap
        assert len(weight) == place.stop - place.start
        assert weight.min() >= 0
        assert place.start == 0 or weight[0] == 0
        assert place.stop == size or weight[-1] == 0
        assert weight.diff().abs().max() <= 2 / overlap + 1e-6 if len(weight) > 1 else True
        total[place] += weight
        before = place.stop
    assert before == size
    assert torch.allclose(total, torch.ones(size))


@pytest.mark.parametrize(("upsampler", "norm"), [("a2u", "A2U"), ("sapa", "PlainGroupNorm")])
def test_networks_that_look_at_the_whole_picture_are_not_tiled(upsampler, norm):
    network = MattingNet(upsampler, trunk="tf_efficientnet_lite0", channels=8)
    photo, trimap = noise(20, 300), unknown(20, 300)
    assert matte_photo(network, photo, trimap, HALF, HALF).shape == (20, 300)
    message = f"tile must be 0 for a network with {norm}, which takes statistics of the whole picture, got 256; leave"
    with pytest.raises(ValueError, match=message):
        matte_photo(network, photo, trimap, HALF, HALF, tile=256)


def test_a_real_network_in_tiles():
    """What lies farther than the network sees is not changed by a tile's end; nearer it is, and blended."""
    network = MattingNet("fade", trunk="tf_efficientnet_lite0", channels=8).eval()
    photo = noise(40, 1100)
    trimap = torch.zeros(40, 1100, dtype=torch.uint8)
    trimap[:, 20:120] = UNKNOWN
    tiled = matte_photo(network, photo, trimap, HALF, HALF, tile=768, overlap=64)
    whole = matte_photo(network, photo, trimap, HALF, HALF)
    assert (whole[:, 20:120].float().std() > 1).item()
    assert (tiled.int() - whole.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"photo": torch.zeros(3, 4, 5)}, r"photo must be uint8 \(3, height, width\), got torch.float32 \(3, 4, 5\)"),
        ({"trimap": unknown(5, 4)}, r"trimap must be uint8 \(4, 5\) like photo, got torch.uint8 \(5, 4\)"),
        ({"trimap": unknown(4, 5).long()}, r"trimap must be uint8 \(4, 5\) like photo, got torch.int64 \(4, 5\)"),
        ({"trimap": unknown(4, 5) + 1}, "trimap must be 0, 128 and 255, got 129; map it with mapped_trimap"),
        ({"tile": 128}, "tile must be 0 or a multiple of 32 from 256, got 128"),
        ({"tile": 300}, "tile must be 0 or a multiple of 32 from 256, got 300"),
        ({"tile": 512, "overlap": 32}, r"overlap must be a multiple of 32 from 64 to half a tile \(256\), got 32"),
        ({"tile": 512, "overlap": 288}, r"overlap must be a multiple of 32 from 64 to half a tile \(256\), got 288"),
        ({"tile": 512, "overlap": 100}, "overlap must be a multiple of 32 from 64 to half a tile .* got 100"),
        ({"network": Fixed(float("nan"))}, "network must give finite alpha, got NaN or infinity; try float32"),
        ({"network": nn.Bilinear(1, 1, 1)}, "network must give alpha"),
    ],
)
def test_bad_arguments(changed, message, monkeypatch):
    monkeypatch.setattr(nn.Bilinear, "forward", lambda self, image, context: image)
    arguments = {"network": Fixed(0.5), "photo": noise(4, 5), "trimap": unknown(4, 5)} | ONE | changed
    with pytest.raises(ValueError, match=message):
        matte_photo(**arguments)


@pytest.fixture
def no_pymatting(monkeypatch):
    """In its place colours as they are: it compiles itself for a minute at its first use."""

    asked = []

    def estimate_foreground_ml(image, alpha):
        assert image.dtype == alpha.dtype == np.float32
        asked.append(image.shape)
        return image

    for room in (cutout, matte):
        monkeypatch.setattr(
            room, "needed", lambda *what: SimpleNamespace(estimate_foreground_ml=estimate_foreground_ml)
        )
    return asked


@pytest.mark.slow
def test_colours_are_the_foreground_s_alone():
    alpha = torch.linspace(0, 255, 80).round().byte().repeat(60, 1)
    red, blue = (np.full((60, 80, 3), color, np.uint8) for color in ((220, 30, 10), (10, 30, 220)))
    photo = torch.from_numpy(compose(red, alpha.numpy(), blue)).permute(2, 0, 1)
    cut = cut_out(photo, alpha)
    assert (cut.shape, cut.dtype) == ((60, 80, 4), np.uint8)
    assert np.array_equal(cut[..., 3], alpha.numpy())
    seen = alpha.numpy() > 40
    assert np.abs(cut[seen][:, :3].astype(int) - (220, 30, 10)).max() <= 12
    green = torch.tensor([0, 200, 0], dtype=torch.uint8)[:, None, None]
    wanted = compose(red, alpha.numpy(), np.full_like(red, (0, 200, 0)))
    assert np.abs(composite_on(photo, alpha, green).astype(int) - wanted).max() <= 12


def test_a_photo_of_one_pixel_keeps_its_colour(no_pymatting):
    photo, alpha = noise(1, 1), torch.tensor([[77]], dtype=torch.uint8)
    assert cut_out(photo, alpha).tolist() == [[[*photo.flatten().tolist(), 77]]]


def test_backgrounds_cover_and_are_centred(no_pymatting):
    background = torch.zeros(3, 40, 200, dtype=torch.uint8)
    background[0, :, 80:120] = 255  # the middle square of 40
    nothing = torch.zeros(80, 80, dtype=torch.uint8)
    out = composite_on(noise(80, 80), nothing, background)
    assert out.shape == (80, 80, 3)
    assert (out[:, 4:-4] == (255, 0, 0)).all()
    full = composite_on(noise(80, 30), nothing[:, :30] + 255, background)
    assert full.shape == (80, 30, 3)


@pytest.mark.parametrize("make", [cut_out, lambda photo, alpha: composite_on(photo, alpha, noise(3, 3))])
def test_alpha_must_fit(make, no_pymatting):
    with pytest.raises(ValueError, match=r"alpha must be uint8 \(4, 5\) like photo, got torch.uint8 \(5, 4\)"):
        make(noise(4, 5), unknown(5, 4))
    with pytest.raises(ValueError, match=r"alpha must be uint8 \(4, 5\) like photo, got torch.float32 \(4, 5\)"):
        make(noise(4, 5), torch.zeros(4, 5))


def test_backgrounds_are_colours_or_files(tmp_path):
    assert read_background("#0a80Ff").flatten().tolist() == [10, 128, 255]
    save(tmp_path / "a.png", noise(4, 5))
    assert read_background(tmp_path / "a.png").shape == (3, 4, 5)
    for text in ("#12345", "#12345g", "#1234567"):
        with pytest.raises(ValueError, match=f"background must be a picture or a colour such as #00ff7f, got '{text}'"):
            read_background(text)
    with pytest.raises(FileNotFoundError, match="red must be a picture, got no such file"):
        read_background("red")


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = picture.numpy() if picture.ndim == 2 else picture.permute(1, 2, 0).numpy()
    Image.fromarray(values).save(path, **options)
    return path


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def run(photos, trimaps, out, network=None, **options):
    return matte_photos(Matter(network or Local(), **ONE, recipe=Cutouts()), photos, trimaps, out, **options)


@pytest.fixture
def pair(tmp_path):
    """Two photographs and their trimaps."""
    for name, size in (("a", (20, 60)), ("b", (31, 45))):
        save(tmp_path / "photos" / f"{name}.png", noise(*size))
        save(tmp_path / "trimaps" / f"{name}.png", half_known(*size))
    photos = [tmp_path / "photos" / f"{name}.png" for name in "ab"]
    return photos, find_guides(photos, tmp_path / "trimaps")


def test_mattes_cut_outs_and_composites_are_written(pair, tmp_path, no_pymatting):
    reported = []
    results = run(*pair, tmp_path / "new" / "out", cutout=True, background="#ff0000", on_photo=reported.append)
    assert results == reported
    names = [f"{photo}.{kind}.png" for photo in "ab" for kind in ("alpha", "composite", "cutout")]
    assert sorted(path.name for path in (tmp_path / "new" / "out").glob("[!.]*")) == names
    assert no_pymatting == [(20, 60, 3), (31, 45, 3)]  # once for both pictures
    photo, trimap = read_photo(pair[0][0]), torch.from_numpy(read(pair[1][0]))
    alpha = matte_photo(Local(), photo, trimap, **ONE).numpy()
    assert np.array_equal(read(results[0].alpha), alpha)
    assert np.array_equal(read(results[0].cutout), np.dstack((photo.permute(1, 2, 0), alpha)))
    behind = np.broadcast_to(np.array([255, 0, 0], np.uint8), (20, 60, 3))
    assert np.array_equal(read(results[0].composite), compose(photo.permute(1, 2, 0).numpy(), alpha, behind))
    assert results[0].covered == pytest.approx(alpha.mean() / 255)
    assert results[0].unknown == pytest.approx(1 / 3)
    assert not results[0].error


def test_mattes_alone_need_no_pymatting(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymatting", None)
    results = run(*pair, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["a.alpha.png", "b.alpha.png"]
    assert (results[0].cutout, results[0].composite) == (None, None)
    for asked in ({"cutout": True}, {"background": "#000000"}):
        with pytest.raises(ModuleNotFoundError, match="pymatting must be installed for 'cut-outs and composites'"):
            run(*pair, tmp_path / "other", **asked)
    assert not (tmp_path / "other").exists()


def test_tiles_reach_the_network(pair, tmp_path):
    photo = save(tmp_path / "wide.png", noise(20, 500))
    network = Local()
    run([photo], [save(tmp_path / "trimap.png", unknown(20, 500))], tmp_path / "out", network, tile=256, overlap=64)
    assert len(network.seen) == 3
    with pytest.raises(ValueError, match="tile must be 0 or a multiple of 32 from 256, got 100"):
        run(*pair, tmp_path / "other", tile=100)
    assert not (tmp_path / "other").exists()


def test_a_broken_photo_is_reported_and_the_others_go_on(pair, tmp_path):
    photos, trimaps = pair
    cut = tmp_path / "cut.png"
    cut.write_bytes(photos[0].read_bytes()[:50])
    known = save(tmp_path / "known.png", torch.zeros(20, 60, dtype=torch.uint8))
    other = save(tmp_path / "other.png", noise(20, 60))
    results = run([cut, other, *photos], [trimaps[0], known, *trimaps[::-1]], tmp_path / "out")
    assert all(result.error for result in results)
    assert "cut.png must be a whole picture" in results[0].error
    assert f"{other}: " in results[1].error
    assert "known.png must have unknown pixels" in results[1].error
    assert f"{trimaps[1]} must be 20 x 60 like its photo, got 31 x 45" in results[2].error
    assert list((tmp_path / "out").glob("[!.]*")) == []
    results = run([*photos, cut], [*trimaps, trimaps[0]], tmp_path / "out")
    assert [bool(result.error) for result in results] == [False, False, True]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError()])
def test_a_photo_that_the_network_cannot_take_is_reported(pair, tmp_path, error):
    class Failing(nn.Module):
        def forward(self, image, context):
            raise error

    results = run(*pair, tmp_path / "out", Failing())
    assert [result.error for result in results] == [f"{photo}: {error or 'MemoryError'}" for photo in pair[0]]


def test_results_are_not_overwritten_unless_asked(pair, tmp_path):
    first, _ = run(*pair, tmp_path / "out")
    content = first.alpha.read_bytes()
    with pytest.raises(ValueError, match=r"must not hold these photos' results, got a.alpha.png and 1 more; set over"):
        run(*pair, tmp_path / "out", Fixed(0.5))
    assert first.alpha.read_bytes() == content
    run(*pair, tmp_path / "out", Fixed(0.5), overwrite=True)
    assert first.alpha.read_bytes() != content


def test_a_trimap_is_never_replaced_by_a_result(pair, tmp_path):
    photos, trimaps = pair
    trimap = trimaps[0].rename(trimaps[0].with_name("a.alpha.png"))
    content = trimap.read_bytes()
    with pytest.raises(ValueError, match=r"must be another folder, got one where a.alpha.png is itself a picture"):
        run(photos[:1], [trimap], trimap.parent, overwrite=True)
    assert trimap.read_bytes() == content


def test_a_full_disk_names_the_file_and_keeps_what_was_finished(pair, tmp_path, monkeypatch):
    write = files.write

    def limited(path, content):
        if path.name.startswith("b"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(files, "write", limited)
    with pytest.raises(OSError, match=r"b.alpha.png must be a file that can be written, got .*No space left"):
        run(*pair, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["a.alpha.png"]


def test_a_trimap_for_each_photo(pair, tmp_path):
    with pytest.raises(ValueError, match="trimaps must be 2, one for each photo, got 1"):
        run(pair[0], pair[1][:1], tmp_path / "out")
    with pytest.raises(ValueError, match=r"background must be a picture or a colour .* got '#red'"):
        run(*pair, tmp_path / "out", background="#red")
    assert not (tmp_path / "out").exists()


def test_trimaps_are_found_by_name(tmp_path):
    photos = [save(tmp_path / "in" / name, noise(3, 4)) for name in ("a.jpg", "b.png")]
    folder = tmp_path / "trimaps"
    with pytest.raises(FileNotFoundError, match=r"trimap must be a file or a folder, got .*, which does not exist"):
        find_guides(photos, folder)
    a = save(folder / "a.png", unknown(3, 4))
    save(folder / "b.alpha.png", unknown(3, 4))  # an earlier result
    with pytest.raises(ValueError, match=r"trimaps must hold a trimap for each photo, b with any suffix, got none"):
        find_guides(photos, folder)
    b = save(folder / "b.bmp", unknown(3, 4))
    assert find_guides(photos, folder) == [a, b]
    assert find_guides(photos[:1], b) == [b]
    with pytest.raises(ValueError, match=r"mask must be a folder for 2 photos, got the file .*a.png"):
        find_guides(photos, a, "mask")
    save(folder / "a.webp", unknown(3, 4))
    with pytest.raises(ValueError, match=r"must hold a mask for each photo, a with any suffix, got a.png and a.webp"):
        find_guides(photos, folder, "mask")


def test_a_photo_is_not_its_own_trimap(tmp_path):
    photo = save(tmp_path / "a.jpg", noise(3, 4))
    with pytest.raises(ValueError, match="a with any suffix, got none"):
        find_guides([photo], tmp_path)
    trimap = save(tmp_path / "a.png", unknown(3, 4))
    assert find_guides([photo], tmp_path) == [trimap]


def test_trimaps_are_mapped(tmp_path):
    path = save(tmp_path / "a.png", torch.tensor([[0, 63, 64, 191, 192, 255]], dtype=torch.uint8))
    assert read_guide(path, (1, 6)).tolist() == [[0, 0, 128, 128, 255, 255]]


def test_the_trimap_of_a_rotated_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo = save(tmp_path / "a.jpg", noise(40, 60), exif=exif)
    [result] = run([photo], [save(tmp_path / "b.png", half_known(40, 60))], tmp_path / "out")
    assert "b.png must be 60 x 40 like its photo, got 40 x 60 (height x width); is the photo's EXIF" in result.error
    [result] = run([photo], [save(tmp_path / "c.png", half_known(60, 40))], tmp_path / "out")
    assert read(result.alpha).shape == (60, 40)


@pytest.mark.parametrize(
    ("size", "width", "expected"), [((300, 500), None, 10), ((90, 90), None, 5), ((9, 90), 15, 15)]
)
def test_masks_become_trimaps(tmp_path, size, width, expected):
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[:, size[1] // 2 :] = 255
    path = save(tmp_path / "a.png", mask)
    trimap = read_guide(path, size, mask=True, width=width)
    assert trimap.dtype == torch.uint8
    assert np.array_equal(trimap.numpy(), trimap_from_mask(mask.numpy(), expected))
    assert (trimap[0] == UNKNOWN).sum() == 2 * expected
    [result] = run([save(tmp_path / "p.png", noise(*size))], [path], tmp_path / "out", masks=True, width=width)
    assert result.unknown == pytest.approx(2 * expected / size[1])


def test_bad_masks(tmp_path):
    path = save(tmp_path / "a.png", torch.zeros(9, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"a.png: mask must have foreground .* got background alone"):
        read_guide(path, (9, 8), mask=True)
    with pytest.raises(ValueError, match=r"a.png must be 9 x 7 like its photo, got 9 x 8 \(height x width\)$"):
        read_guide(path, (9, 7), mask=True)
    with pytest.raises(ValueError, match=r"a.png: width must be 1 pixel or more, got 0.5"):
        read_guide(path, (9, 8), mask=True, width=0.5)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model must be a matting network .* got another kind, 'a/b'"):
        load_matter("a/b")


MEMORY = """
import torch
from torch import nn
from fadeup.bench import peak_memory
from fadeup.predict import matte_photo
torch.set_num_threads(1)
class Wide(nn.Module):
    def forward(self, image, context=None): return image[:, :1].expand(-1, 64, -1, -1).contiguous()[:, :1]
    def context(self, image): return image.mean()
def matte(height, width, **options):
    photo, trimap = (torch.full(size, 128, dtype=torch.uint8) for size in ((3, height, width), (height, width)))
    matte_photo(Wide(), photo, trimap, (0, 0, 0), (1, 1, 1), **options)
matte(256, 300, tile=256, overlap=64)
print(peak_memory(lambda: matte(2000, 1500, tile=256, overlap=64)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux only")
def test_memory_holds_no_maps_of_the_photo_s_size():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 150, "megabytes; 64 channels at the photo's size would take 768"
