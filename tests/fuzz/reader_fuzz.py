"""Feeds bytes to every reader of files: what comes back is as documented, or the error is, and names the file.

    python tests/fuzz/reader_fuzz.py photo --seconds 120       one reader, guided by coverage (needs atheris)
    python tests/fuzz/reader_fuzz.py all --seconds 30          all of them in one process

A failing input is kept in the folder `--out`. `attempt` does without atheris; the tests call it with mutated files.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2  # noqa: F401 - large libraries first: coverage is measured in fadeup and in PIL's decoders alone
import numpy as np
import torch
from safetensors.torch import save as safetensors

PIXELS = 200_000
"""FADEUP_MAX_PIXELS meanwhile."""
SECONDS = 10
"""Of processor time that a file may take; most take milliseconds."""
MEMORY = 2048
"""MiB that the process may have resident; it begins with 770."""
LONGEST = 1500
"""Characters of a message."""
COVERED = (
    *("fadeup.reading", "fadeup.checkpoint", "fadeup.compare", "fadeup.hub", "fadeup.visualize", "fadeup.cli.options"),
    *("fadeup.data.labelled", "fadeup.data.matting", "fadeup.data.fashion_mnist", "fadeup.data.landcover"),
    *("fadeup.predict.trained", "fadeup.models.pretrained", "fadeup.upsamplers.official"),
    *("PIL.PngImagePlugin", "PIL.JpegImagePlugin", "PIL.TiffImagePlugin", "PIL.GifImagePlugin"),
)
"""Modules whose coverage guides; each takes a second to prepare."""


def _instrumented() -> Any:
    if __name__ != "__main__":
        return nullcontext()
    import atheris

    return atheris.instrument_imports(include=list(COVERED), enable_loader_override=False)


with _instrumented():
    from PIL import Image

    from fadeup import build_upsampler, load_official
    from fadeup.checkpoint import load_checkpoint, load_weights, read_about
    from fadeup.cli.options import chosen_recipe
    from fadeup.compare import RunFolder, TrainedRow
    from fadeup.data import ade20k, composition1k, folder, labelled
    from fadeup.data.compositing import TrainComposites
    from fadeup.data.fashion_mnist import read_idx
    from fadeup.data.labelled import LabelledImages, read_label, read_photo
    from fadeup.data.landcover import landcover
    from fadeup.data.matting import Foreground, read_alpha, read_foreground, read_trimap
    from fadeup.hub import _more
    from fadeup.models import Autoencoder
    from fadeup.models.pretrained import is_pretrained
    from fadeup.models.weights import read_weights
    from fadeup.predict import load_trained, weights_file
    from fadeup.recipes import RECIPES, Reconstruction
    from fadeup.visualize import figure_snapshots, gif_snapshots, read_snapshots

GREY = np.random.default_rng(0).integers(0, 4, (9, 12), dtype=np.uint8)
COLORS = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
TINY = Reconstruction(train_images=40, test_images=12, epochs=1)
IDENTITY = {"task": "reconstruction", "seed": 0}


@dataclass(frozen=True)
class Target:
    """A reader: valid files of its format, and how bytes become files and are read."""

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    write: Callable[[Path, bytes], object] = Path.write_bytes
    errors: tuple[type[Exception], ...] = (ValueError,)
    names_file: bool = True


# ---- pictures ----


def pictures() -> list[bytes]:
    """Small pictures of every kind that is told of: depths, palettes, compressions, rotation, frames."""
    grey, colors = Image.fromarray(GREY), Image.fromarray(COLORS)
    alpha = Image.fromarray(np.dstack((COLORS, np.where(GREY > 1, 255, 60 * GREY).astype(np.uint8))))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        *((grey, "PNG", {}), (colors, "PNG", {}), (alpha, "PNG", {}), (grey.convert("1"), "PNG", {})),
        *((Image.fromarray(GREY.astype(np.uint16)), "PNG", {}), (grey, "PNG", {"exif": turned})),
        *((grey.convert("LA"), "PNG", {}), (colors.quantize(8), "PNG", {"transparency": bytes(8)})),
        *((colors.quantize(4), "PNG", {}), (grey, "PNG", {"icc_profile": b"no profile"})),
        *((colors, "JPEG", {}), (colors.convert("CMYK"), "JPEG", {}), (colors, "JPEG", {"progressive": True})),
        *((colors, "JPEG", {"exif": turned}), (colors, "WEBP", {}), (alpha, "WEBP", {"lossless": True})),
        *((colors, "TIFF", {}), (colors, "TIFF", {"compression": "tiff_lzw"}), (grey, "BMP", {})),
        *((grey, "TIFF", {"compression": "tiff_adobe_deflate"}), (colors.convert("LAB"), "TIFF", {})),
        *((Image.fromarray(GREY.astype(np.float32)), "TIFF", {}), (Image.fromarray(GREY.astype(np.int32)), "TIFF", {})),
        *((grey, "GIF", {"save_all": True, "append_images": [grey.rotate(90)]}), (colors, "BMP", {})),
        *((grey, "PPM", {}), (colors, "TGA", {}), (colors, "JPEG2000", {}), (colors, "ICO", {"sizes": [(9, 9)]})),
        *((grey, "EPS", {}), (colors, "PCX", {}), (colors, "SGI", {}), (colors, "DDS", {}), (grey, "SPIDER", {})),
    ]
    return [_saved(*kind) for kind in kinds] + [interlaced()]


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def interlaced() -> bytes:
    """A grey PNG of 2 x 1 pixels and 4 bits in Adam7, which Pillow does not write."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 1)), (b"IDAT", zlib.compress(b"\0\x10\0\x20"))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in [*parts, (b"IEND", b"")])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_picture(path: Path, content: bytes) -> None:
    """As it is, but PNG's checksums are made to fit: no mutation would go past them."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        place, chunks = 8, [content[:8]]
        while place + 12 <= len(content):
            (size,) = struct.unpack_from(">I", content, place)
            size = min(size, len(content) - place - 12)
            chunks.append(_chunk(content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
            place += 12 + size
        content = b"".join(chunks)
    path.write_bytes(content)


def read_as_photo(path: Path) -> None:
    photo = read_photo(path)
    assert photo.dtype == torch.uint8
    assert photo.ndim == 3
    assert photo.is_contiguous()
    assert len(photo) == 3
    assert 1 <= photo.shape[1] * photo.shape[2] <= PIXELS


def read_as_label(path: Path) -> None:
    label = read_label(path)
    assert label.dtype == torch.uint8
    assert label.ndim == 2
    assert 1 <= label.numel() <= PIXELS
    data = LabelledImages("set", "train", [(path, path)], ("a", "b", "c"), decode={0: 0, 1: 1, 2: 2, 3: 255})
    assert set(data.label(0).unique().tolist()) <= {0, 1, 2, 255}
    assert data.counts().sum() <= label.numel()


def read_as_alpha(path: Path) -> None:
    alpha = read_alpha(path)
    assert alpha.dtype == np.uint8
    assert alpha.ndim == 2
    assert 1 <= alpha.size <= PIXELS
    assert set(np.unique(read_trimap(path))) <= {0, 128, 255}


def read_as_cutout(path: Path) -> None:
    color, alpha = read_foreground(Foreground("x", path))
    assert color.shape == (*alpha.shape, 3)
    assert color.dtype == alpha.dtype == np.uint8
    background = path.with_name("background.png")
    if not background.exists():
        Image.fromarray(COLORS).save(background)
    if alpha.size > 10_000:
        return
    torch.manual_seed(0)
    inputs, target = TrainComposites([Foreground("x", path)], [background], crop=8, largest_kernel=3, enlarged=16)[0]
    assert inputs.shape == (4, 8, 8)
    assert target.shape == (8, 8, 8)
    assert inputs.isfinite().all()
    assert target.min() >= 0
    assert target.max() <= 1


# ---- arrays, archives, checkpoints ----


def idx_files() -> list[bytes]:
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 3, 4)
    whole = gzip.compress(header + bytes(24))
    return [b"\1" + header + bytes(24), b"\1" + bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + bytes(5), b"\0" + whole]


def write_idx(path: Path, content: bytes) -> None:
    """The whole file, or by the first byte what is packed in it."""
    path.write_bytes(content[1:] if content[:1] == b"\0" else gzip.compress(content[1:], 1))


def read_as_idx(path: Path) -> None:
    array = read_idx(path)
    assert array.dtype == np.uint8
    assert 1 <= array.ndim <= 3
    assert array.size <= PIXELS


def torch_files(content: Any) -> list[bytes]:
    """Whole files in both formats of torch, and the pickle of the newer one alone."""
    files = []
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=new)
        files.append(buffer.getvalue())
    with zipfile.ZipFile(io.BytesIO(files[0])) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return [b"\0" + files[0], b"\0" + files[1], b"\1" + archive.read(name)]


def write_torch(whole: Callable[[], list[bytes]]) -> Callable[[Path, bytes], None]:
    """The whole file, or by the first byte the pickle in an otherwise whole archive, whose checksums then fit."""
    base = cache(lambda: whole()[0][1:])

    def write(path: Path, content: bytes) -> None:
        if content[:1] == b"\0":
            path.write_bytes(content[1:])
            return
        with zipfile.ZipFile(io.BytesIO(base())) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, content[1:] if name.endswith("data.pkl") else old.read(name))

    return write


def checkpoints() -> list[bytes]:
    state = {"steps_done": 3, "network": {"weight": torch.zeros(2, 3)}, "optimizer": [1.5, "a", None]}
    return torch_files({"identity": json.dumps(IDENTITY, sort_keys=True), "state": state})


def read_as_checkpoint(path: Path) -> None:
    assert isinstance(load_checkpoint(path, IDENTITY), dict)


@cache
def sampler() -> torch.nn.Module:
    return build_upsampler("dysample", 4, groups=2)


def official_files() -> list[bytes]:
    state = {"offset.weight": torch.zeros(16, 4, 1, 1), "offset.bias": torch.zeros(16)}
    state["init_pos"] = sampler().state_dict()["start"]
    return torch_files(state) + torch_files({"state_dict": {f"module.{name}": x for name, x in state.items()}})


def read_as_official(path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in sampler().state_dict().items()}
    try:
        load_official(sampler(), path)
    except ValueError:
        for name, tensor in sampler().state_dict().items():
            assert torch.equal(before[name].nan_to_num(7), tensor.nan_to_num(7)), "loaded in part"
        raise
    for name, tensor in sampler().state_dict().items():
        assert tensor.shape == before[name].shape
    assert all(isinstance(tensor, torch.Tensor) for tensor in read_weights(path).values())


def weight_files() -> list[bytes]:
    tensors = torch.nn.Linear(2, 3).state_dict()
    return [safetensors(tensors, {"fadeup": json.dumps({"task": "x"})}), safetensors({"weight": torch.zeros(1)})]


def read_as_weights(path: Path) -> None:
    network = torch.nn.Linear(2, 3)
    assert isinstance(read_about(path), dict)
    load_weights(path, network)
    assert network.weight.dtype == torch.float32
    assert set(read_weights(path)) == {"weight", "bias"}


@cache
def weights(*channels: int) -> dict[str, torch.Tensor]:
    """Of a network."""
    return Autoencoder("bilinear", channels=channels).state_dict()


def abouts() -> list[bytes]:
    about = {"fadeup": "1", "task": TINY.task, "recipe": asdict(TINY), "upsampler": "bilinear", "seed": 0}
    about |= {"scores": {metric.name: 1.5 for metric in TINY.metrics}}
    land = RECIPES["landcover"](channels=8)
    told = {"task": "landcover", "recipe": asdict(land), "upsampler": "fade", "classes": ["a"], "mean": [0.5] * 3}
    told |= {"without": {"prefix": "backbone.", "weights": "imagenet"}}
    return [json.dumps(x).encode() for x in (about, told)]


def write_about(path: Path, content: bytes) -> None:
    """What a file of weights says."""
    path.write_bytes(safetensors(weights(32, 64, 128), {"fadeup": content.decode(errors="replace")}))


def read_as_trained(path: Path) -> None:
    network, recipe, about = load_trained(path)
    assert not network.training
    assert recipe.task in RECIPES
    assert isinstance(about, dict)


def configs() -> list[bytes]:
    arguments = {"upsampler": "bilinear", "channels": [2, 3], "in_channels": 1, "pooling": "max"}
    told = {"_class": "Autoencoder", "_fadeup": "1", "_classes": ["a", "b"]}
    return [json.dumps(x).encode() for x in (arguments | told, {"model_type": "segformer"}, {"task": "landcover"})]


def write_config(path: Path, content: bytes) -> None:
    """A folder of a network with this `config.json`."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    whole = safetensors(weights(2, 3), {"fadeup": json.dumps({"network": "Autoencoder"})})
    path.with_name("model.safetensors").write_bytes(whole)


def read_as_config(path: Path) -> None:
    assert is_pretrained(path.parent) in (True, False)
    weights_file(path.parent)
    network = Autoencoder.from_pretrained(path.parent)
    assert not network.training
    assert network(torch.zeros(1, network.in_channels, 4, 4)).shape == (1, network.in_channels, 4, 4)


# ---- run folders ----


def run_configs() -> list[bytes]:
    return [json.dumps({"task": TINY.task, **asdict(TINY), "seed": 0}).encode(), b"{}", b"[" * 3000]


def read_as_run(path: Path) -> None:
    before = path.read_bytes()
    try:
        RunFolder(path.parent, TINY, resume=True, seed=0)
    except ValueError:
        assert path.read_bytes() == before
        raise


def array(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


ROW: dict[str, Any] = {
    "meta": json.dumps({"upsampler": "fade", "seed": 0, "seconds": 1.0, "parameters": 2, "macs": 3}),
    "losses": np.ones(3, np.float32),
    "pictures": np.zeros((1, 4, 4), np.uint8),
    "errors": np.zeros((1, 4, 4), np.float16),
    **{f"statistics.{metric.name}": np.ones((2, 1)) for metric in TINY.metrics},
}
SNAPSHOT: dict[str, Any] = {"feature.0": np.ones((3, 4), np.float16), "gradient.0": np.ones((3, 4), np.float16)}


def archives(arrays: dict[str, Any]) -> list[bytes]:
    """A whole .npz, and each of its arrays alone, marked by its number."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    alone = [bytes([1 + number]) + array(values) for number, values in enumerate(arrays.values())]
    return [b"\0" + buffer.getvalue(), *alone, b"\2" + objects.getvalue()]


def write_archive(arrays: dict[str, Any]) -> Callable[[Path, bytes], None]:
    def write(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if content[:1] == b"\0":
            path.write_bytes(content[1:])
            return
        changed = (content[0] - 1) % len(arrays) if content else 0
        with zipfile.ZipFile(path, "w") as archive:
            for number, (name, values) in enumerate(arrays.items()):
                archive.writestr(f"{name}.npy", content[1:] if number == changed else array(values))

    return write


def read_as_row(path: Path) -> None:
    run = object.__new__(RunFolder)
    run.path, run.recipe = path.parents[1], TINY
    row = run.load("fade", 0)
    assert isinstance(row, TrainedRow)
    assert (row.upsampler, row.seed, row.losses.ndim) == ("fade", 0, 1)
    for metric in TINY.metrics:
        assert isinstance(row.score(metric), float)


def read_as_snapshots(path: Path) -> None:
    found = read_snapshots(path.parents[1])
    assert list(found) == [10]
    if max(x.size for x in found[10].values()) > 5_000:
        return
    kind = next(iter(found[10])).split(".")[0]
    with np.errstate(all="ignore"):  # of values that are not finite
        figure_snapshots({"run": found}, kind)
        assert gif_snapshots({"run": found}, kind)[:3] == b"GIF"


def read_as_results(path: Path) -> None:
    assert isinstance(_more(path.with_name("model.safetensors")), dict)


# ---- lists of names ----


def tile_lists() -> list[bytes]:
    tile = {"name": "a", "split": "train", "longitude": 1.5, "latitude": 2.5, "column": 0, "row": 0}
    return [json.dumps([tile]).encode(), json.dumps([tile | {"name": "../a"}]).encode()]


def read_as_tiles(path: Path) -> None:
    for photo, label in landcover("train", path.parent).pairs:
        assert Path(os.path.normpath(photo)).is_relative_to(path.parent)
        assert Path(os.path.normpath(label)).is_relative_to(path.parent)


def read_as_names(path: Path) -> None:
    names = composition1k._names(path)
    assert all(Path(os.path.normpath(path.parent / name)).is_relative_to(path.parent) for name in names)
    assert all(isinstance(line, str) for line in labelled.read_lines(path))


def read_as_classes(path: Path) -> None:
    names = folder._names(path.parent, {})
    assert all(name and name == name.strip() for name in names)


def classes150() -> list[bytes]:
    return ["\n".join(f"{n}\t0.1\t3\t4\tname {n}, other" for n in range(1, 151)).encode()]


def read_as_settings(path: Path) -> None:
    text = path.read_bytes().decode(errors="replace")
    given = {"protocol": "quick", "epochs": None, "train_images": None, "test_images": None, "source": None}
    recipe = chosen_recipe("landcover", argparse.Namespace(**given, set=text.split("\n")))
    hash(recipe)


TARGETS = {
    "photo": Target("x.png", pictures, read_as_photo, write_picture),
    "label": Target("x.png", pictures, read_as_label, write_picture),
    "alpha": Target("x.png", pictures, read_as_alpha, write_picture),
    "cutout": Target("x.png", pictures, read_as_cutout, write_picture),
    "idx": Target("x.gz", idx_files, read_as_idx, write_idx),
    "checkpoint": Target("x.pt", checkpoints, read_as_checkpoint, write_torch(checkpoints)),
    "official": Target("x.pth", official_files, read_as_official, write_torch(official_files)),
    "weights": Target("x.safetensors", weight_files, read_as_weights),
    "trained": Target(
        "x.safetensors", abouts, read_as_trained, write_about, (ValueError, FileNotFoundError, ModuleNotFoundError)
    ),
    "config": Target("net/config.json", configs, read_as_config, write_config),
    "run": Target("run/config.json", run_configs, read_as_run),
    "row": Target("run/rows/fade-seed0.npz", lambda: archives(ROW), read_as_row, write_archive(ROW)),
    "snapshots": Target(
        "run/snapshots/step10.npz", lambda: archives(SNAPSHOT), read_as_snapshots, write_archive(SNAPSHOT)
    ),
    "results": Target("results.json", lambda: [b'{"steps": 3}', b"[]"], read_as_results),
    "tiles": Target("tiles.json", tile_lists, read_as_tiles),
    "names": Target("names.txt", lambda: [b"a.png\nb/c.png\n", b"../x", b"/x", b"C:\\x"], read_as_names),
    "classes": Target("classes.txt", lambda: [b"sky\nroad\n", "Straße\n".encode()], read_as_classes),
    "class numbers": Target("objectInfo150.txt", classes150, ade20k._names),
    "set": Target("x", lambda: [b"size=128\nweights=None", b"scale=(0.5, 2)"], read_as_settings, names_file=False),
}


def attempt(name: str, content: bytes, place: Path) -> bool:
    """Read `content` as a file of that kind in an empty folder.

    Returns:
        Whether it was accepted.

    Raises:
        AssertionError: What came back, the error or what is left in the folder is not as documented.
    """
    target = TARGETS[name]
    path = place / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    target.write(path, content)
    before, start = files(place), time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            target.read(path)
            accepted = True
        except target.errors as error:
            accepted = False
            check_message(error, path if target.names_file else None)
    seconds = time.process_time() - start
    assert not told, f"warnings: {[str(warning.message) for warning in told]}"
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert files(place) - {place / "background.png"} == before - {place / "background.png"}
    return accepted


def check_message(error: Exception, path: Path | None) -> None:
    """A message of ours: it names the file or its folder, says the rule and what is there."""
    text = str(error)
    assert type(error) in (ValueError, FileNotFoundError, ModuleNotFoundError), repr(error)
    assert " must " in text, text
    assert "got" in text, text
    assert len(text) < LONGEST, f"{len(text)} characters: {text[:300]}"
    if path is not None and type(error) is ValueError:
        assert path.name in text or str(path.parent) in text, text


def peak() -> float:
    """MiB that this process has had resident at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def files(place: Path) -> set[Path]:
    return set(place.rglob("*"))


def prepare() -> None:
    """Bounds and quiet for a process that does nothing but fuzz."""
    os.environ["FADEUP_MAX_PIXELS"] = str(PIXELS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)


def seeds(name: str) -> Iterator[bytes]:
    """Seeds of a target, or of all of them with the target's number before each."""
    if name != "all":
        yield from TARGETS[name].seeds()
        return
    for number, target in enumerate(TARGETS.values()):
        yield from (bytes([number]) + seed for seed in target.seeds())


def fuzz(name: str, seconds: int, runs: int, out: Path, corpus: Path) -> None:
    """Run libFuzzer on a target; it ends the process, with status 0 where nothing failed."""
    import atheris

    place = Path(tempfile.mkdtemp(prefix="fadeup-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    corpus.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed{number:03d}").write_bytes(seed)
    kinds = list(TARGETS)

    def once(content: bytes) -> None:
        if name != "all":
            attempt(name, content, place)
        elif content:
            kind = kinds[content[0] % len(kinds)]
            attempt(kind, content[1:], place / kind)
        assert peak() < MEMORY, f"{peak():.0f} MiB"

    # libFuzzer's own limit counts what the process had that started this one; it is but a brake.
    options = {"max_total_time": seconds, "rss_limit_mb": 8 * MEMORY, "timeout": 60, "max_len": 20_000}
    if runs:
        options |= {"runs": runs, "seed": 1}
    options |= {"print_final_stats": 1, "artifact_prefix": f"{out}/{name.replace(' ', '-')}-", "close_fd_mask": 0}
    atheris.Setup([sys.argv[0], str(corpus), *(f"-{key}={value}" for key, value in options.items())], once)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the readers of files.")
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--seconds", type=int, default=30, help="at most")
    parser.add_argument("--runs", type=int, default=0, help="so many files, from one seed (default: no end)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="failing inputs")
    parser.add_argument("--corpus", type=Path, help="inputs that reached new code (default: a temporary folder)")
    parser.add_argument("--again", type=Path, help="read this one input")
    arguments = parser.parse_args()
    prepare()
    if arguments.again:
        place = Path(tempfile.mkdtemp(prefix="fadeup-fuzz-"))
        print("accepted" if attempt(arguments.target, arguments.again.read_bytes(), place) else "refused")
        return
    corpus = arguments.corpus or Path(tempfile.mkdtemp(prefix="fadeup-corpus-"))
    fuzz(arguments.target, arguments.seconds, arguments.runs, arguments.out, corpus)


if __name__ == "__main__":
    main()
