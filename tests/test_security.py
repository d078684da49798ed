"""Files and names of others run nothing, lead nowhere and take no more memory than allowed; no secrets are here."""

import ast
import gzip
import importlib.util
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fadeup import build_upsampler, load_official, reading
from fadeup.checkpoint import load_checkpoint
from fadeup.compare import RunFolder
from fadeup.data import labelled
from fadeup.data.composition1k import composition1k
from fadeup.data.labelled import check_inside, find_pictures, read_photo
from fadeup.data.landcover import landcover
from fadeup.data.matting import ComposedImages, MattingImages
from fadeup.data.matting_folder import matting_folder
from fadeup.models import Autoencoder, SegFormer
from fadeup.models.weights import read_weights
from fadeup.reading import pixel_limit, read_arrays
from fadeup.recipes import Reconstruction
from fadeup.visualize import read_snapshots

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])

# ---- nothing is unpickled or run ----

PICKLES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
NEEDED = {"torch.load": ("weights_only", (True,)), "np.load": ("allow_pickle", (False, None))}
"""Argument and values, None where it may be left out: numpy's own is False."""
NEVER = {"eval", "exec", "torch.hub.load", "torch.jit.load", "os.system", "os.popen", "tempfile.mktemp"}


def dangers(code):
    """What in a module may run what a file says, with its line."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [(node.lineno, name) for name in names if name.split(".")[0] in PICKLES]
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy"):
            found += [(node.lineno, "load by itself") for alias in node.names if alias.name == "load"]
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            key, values = NEEDED.get(name.replace("numpy.", "np."), ("", (None,)))
            argument = given.get(key, ast.Constant(None))
            if not isinstance(argument, ast.Constant) or argument.value not in values:
                found.append((node.lineno, name))
            if name in NEVER or name.endswith((".extractall", ".unpack_archive")):
                found.append((node.lineno, name))
            if "shell" in given or (
                "trust_remote_code" in given and ast.unparse(given["trust_remote_code"]) != "False"
            ):
                found.append((node.lineno, name))
    return found


def test_no_module_reads_pickles_or_runs_text():
    assert len(SOURCES) > 80
    found = {str(path.relative_to(ROOT)): dangers(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "from torch import load",
        "eval(text)",
        "tar.extractall(folder)",
        "subprocess.run(text, shell=True)",
        "AutoConfig.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds(code):
    assert dangers(code)


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Touches(path)))
    assert path.exists()  # it would run
    path.unlink()
    yield path
    assert not path.exists()


def object_array(path, names, marker):
    path.parent.mkdir(parents=True)
    odd = np.empty(1, object)
    odd[0] = Touches(marker)
    np.savez(path, **dict.fromkeys(names, odd))


@pytest.mark.parametrize("new", [True, False])
def test_a_checkpoint_runs_nothing(tmp_path, marker, new):
    path = tmp_path / "checkpoint.pt"
    torch.save({"identity": "{}", "state": Touches(marker)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=r"checkpoint\.pt must be a whole checkpoint, got Weights only load failed"):
        load_checkpoint(path, {})


@pytest.mark.parametrize("new", [True, False])
def test_a_model_file_runs_nothing(tmp_path, marker, new):
    path = tmp_path / "model.pth"
    torch.save({"weight": Touches(marker)}, path, _use_new_zipfile_serialization=new)
    for read in (read_weights, lambda file: load_official(build_upsampler("fade", 4), file)):
        with pytest.raises(ValueError, match=r"must be a readable file of tensors, got .*Weights only load failed"):
            read(path)


def test_a_bare_pickle_runs_nothing(tmp_path, marker):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(Touches(marker)))
    with pytest.raises(ValueError, match="must be a readable file of tensors"):
        read_weights(path)


def test_a_row_runs_nothing(tmp_path, marker):
    folder = RunFolder(tmp_path / "run", Reconstruction())
    object_array(folder.row_path("fade", 0), ("meta", "losses"), marker)
    with pytest.raises(
        ValueError, match=r"fade-seed0\.npz must be a finished row, got .*Object arrays cannot be loaded"
    ):
        folder.load("fade", 0)


def test_a_snapshot_runs_nothing(tmp_path, marker):
    object_array(tmp_path / "snapshots" / "step1.npz", ("feature.0",), marker)
    with pytest.raises(ValueError, match=r"step1\.npz must be an \.npz of plain arrays, got Object arrays"):
        read_snapshots(tmp_path)


def hugging_face_folder(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "segformer"} | config))
    return folder


def test_a_checkpoint_of_transformers_runs_nothing(tmp_path, marker):
    folder = hugging_face_folder(tmp_path / "net")
    torch.save({"weight": Touches(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Weights only load failed"):
        SegFormer.from_pretrained(folder)


def test_code_beside_a_checkpoint_is_not_run(tmp_path, marker):
    code = {"AutoConfig": "odd.Odd", "AutoModel": "odd.Odd"}
    folder = hugging_face_folder(tmp_path / "net", model_type="odd", auto_map=code)
    (folder / "odd.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Odd: pass\n")
    with pytest.raises(ValueError, match="must hold a SegFormer"):
        SegFormer.from_pretrained(folder)


def test_a_picture_that_is_a_program_is_refused(tmp_path, monkeypatch):
    """PIL would have ghostscript run it, whatever the file is called."""
    Image.new("L", (4, 4)).save(tmp_path / "x.png", "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **options: pytest.fail("it was run"))
    with pytest.raises(ValueError, match=r"x\.png must be a whole picture, .* EPS, a program"):
        read_photo(tmp_path / "x.png")


# ---- names stay in their folder ----


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:\\x.png", "..\\x.png", "\\\\host\\x", "a\0b", ""]
)
def test_a_list_names_files_below_its_folder(name):
    with pytest.raises(ValueError, match=r"names\.txt must name files below its data set's folder, got"):
        check_inside(Path("names.txt"), name)


@pytest.mark.parametrize("name", ["x.png", "a/b/x.png", "..x.png", "a..b.png", "Straße 1.png"])
def test_a_list_may_name_folders_below(name):
    assert check_inside(Path("names.txt"), name) == name


def test_lists_of_composition1k_do_not_lead_out(tmp_path):
    part = tmp_path / "Test_set" / "Adobe-licensed images"
    for kind in ("fg", "alpha", "trimaps"):
        (part / kind).mkdir(parents=True)
        Image.new("L", (4, 4), 128).save(part / kind / ("a.png" if kind != "trimaps" else "a_0.png"))
    (tmp_path / "Test_set" / "test_fg_names.txt").write_text("a.png\n")
    (tmp_path / "Test_set" / "test_bg_names.txt").write_text("../secret.png\n" * 20)
    (tmp_path / "behind").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"test_bg_names\.txt must name files below .*, got '\.\./secret\.png'; mend"):
        composition1k("test", tmp_path, backgrounds=tmp_path / "behind", strict=False)


def test_tiles_do_not_lead_out(tmp_path):
    tile = {"name": "../a", "split": "train", "longitude": 0, "latitude": 0, "column": 0, "row": 0}
    (tmp_path / "tiles.json").write_text(json.dumps([tile]))
    with pytest.raises(ValueError, match=r"tiles\.json must name files below its data set's folder, got '\.\./a'"):
        landcover("train", tmp_path)
    (tmp_path / "tiles.json").write_text(json.dumps([tile | {"name": 3}]))
    with pytest.raises(ValueError, match=r"tiles\.json must have texts as names and splits, got 3 and 'train'"):
        landcover("train", tmp_path)


def test_names_of_test_pictures_stay_below_the_folder_that_results_go_to(tmp_path, cutout_folder):
    for kind in ("merged", "alpha_copy", "trimaps"):
        for name in ("deep/a.png", "..b.png"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 128).save(tmp_path / kind / name)
    composed = matting_folder("test", cutout_folder)
    assert isinstance(composed, ComposedImages)
    for data in (MattingImages(tmp_path), composed):
        assert data.names
        for name in data.names:
            assert Path(os.path.normpath(Path("/out") / f"{name}.png")).is_relative_to("/out")


def test_a_data_set_of_links_is_read(tmp_path):
    """Your own links are your own; folders that are links are not searched."""
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert list(find_pictures(tmp_path / "set")) == ["a"]


@pytest.mark.parametrize("without", [{"prefix": "head.", "weights": "/secret.pth"}, {"prefix": "head."}, [1], "x"])
def test_a_model_does_not_name_files_of_this_machine(tmp_path, without):
    network = Autoencoder("bilinear", channels=(2, 3))
    network.save_pretrained(tmp_path)
    told = {"fadeup": json.dumps({"without": without})}
    save_file(dict(network.state_dict()), tmp_path / "model.safetensors", told)
    with pytest.raises(ValueError, match=r"model\.safetensors must leave out a trunk of 'imagenet' or 'hed' weights"):
        Autoencoder.from_pretrained(tmp_path)


# ---- memory ----


def test_the_limit_is_raised_by_the_user(tmp_path, monkeypatch):
    """PIL's own, here 100 and twice that, gives way to a picture of 3,600 pixels and is what it was afterwards."""
    Image.new("L", (60, 60)).save(tmp_path / "x.png")
    for module in (labelled, reading):
        monkeypatch.setattr(module, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        ValueError, match=r"x\.png must have at most 100 pixels, got .*or set FADEUP_MAX_PIXELS to more"
    ):
        read_photo(tmp_path / "x.png")
    monkeypatch.setenv("FADEUP_MAX_PIXELS", "3600")
    assert read_photo(tmp_path / "x.png").shape == (3, 60, 60)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setenv("FADEUP_MAX_PIXELS", "3599")
    with pytest.raises(ValueError, match=r"x\.png must have at most 3599 pixels, got 60 x 60; scale it down, or set"):
        read_photo(tmp_path / "x.png")
    assert Image.MAX_IMAGE_PIXELS == 100
    assert read_photo(tmp_path / "x.png", max_pixels=3600).shape == (3, 60, 60)


@pytest.mark.parametrize("text", ["0", "-1", "1e6", "many", "１２", "9" * 30])
def test_the_limit_is_a_number(monkeypatch, text):
    monkeypatch.setenv("FADEUP_MAX_PIXELS", text)
    with pytest.raises(ValueError, match=r"FADEUP_MAX_PIXELS must be a whole number of 1 or more, got .*; unset it"):
        pixel_limit()


def test_the_limit_is_pils_own_by_default(monkeypatch):
    monkeypatch.setenv("FADEUP_MAX_PIXELS", " ")
    assert pixel_limit() == Image.MAX_IMAGE_PIXELS
    assert pixel_limit(5) == 5


ZEROS = 128 * 2**20
"""Bytes that the bombs unpack to."""
BOMBS = """
import json, os, sys
from pathlib import Path

os.environ |= {"FADEUP_MAX_PIXELS": "1000000", "OMP_NUM_THREADS": "1"}
import numpy as np
import torch

torch.set_num_threads(1)
from fadeup.bench import peak_memory
from fadeup.checkpoint import load_checkpoint, read_about
from fadeup.data.fashion_mnist import read_idx
from fadeup.data.labelled import read_photo
from fadeup.models import Autoencoder
from fadeup.models.weights import read_weights
from fadeup.reading import read_arrays

READ = {"png": read_photo, "tif": read_photo, "gif": read_photo, "gz": read_idx, "npz": read_arrays}
READ |= {"pt": lambda path: load_checkpoint(path, {}), "pth": read_weights, "safetensors": read_about}
READ |= {"json": lambda path: Autoencoder.from_pretrained(path.parent)}
folder = Path(sys.argv[1])
read_photo(folder / "plain.png")
said = {}


def read(path):
    try:
        READ[path.suffix[1:]](path)
        said[path.name] = ""
    except ValueError as error:
        said[path.name] = str(error)


paths = sorted(folder.glob("*bomb*")) + [folder / "config.json"]
memory = {path.name: peak_memory(lambda path=path: read(path)) for path in paths}
print(json.dumps({name: (said[name], memory[name]) for name in said}))
"""


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *more):
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)) if width < 100 else b"")
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def packed_zeros(wbits):
    pack = zlib.compressobj(1, wbits=wbits)
    return b"".join(pack.compress(bytes(2**22)) for _ in range(ZEROS // 2**22)) + pack.flush()


def write_zip(path, **members):
    """An archive whose members are `ZEROS` zeros behind a beginning each."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, start in members.items():
            with archive.open(name.replace("__", "/"), "w", force_zip64=True) as file:
                file.write(start)
                for _ in range(ZEROS // 2**22 if start != b"3\n" else 0):
                    file.write(bytes(2**22))


def write_bombs(folder):
    zeros = packed_zeros(zlib.MAX_WBITS)
    (folder / "plain.png").write_bytes(png(8, 8))
    (folder / "bomb-sides.png").write_bytes(png(60_000, 60_000))
    (folder / "bomb-profile.png").write_bytes(png(8, 8, chunk(b"iCCP", b"x\0\0" + zeros)))
    (folder / "bomb-text.png").write_bytes(png(8, 8, chunk(b"zTXt", b"x\0\0" + zeros)))
    (folder / "bomb-data.png").write_bytes(
        png(8, 8).replace(chunk(b"IDAT", zlib.compress(bytes(16))), chunk(b"IDAT", zeros))
    )
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    tiff = buffer.getvalue()
    sides = tiff.replace(struct.pack("<HHII", 256, 3, 1, 8), struct.pack("<HHII", 256, 4, 1, 10**9))
    (folder / "bomb-sides.tif").write_bytes(sides)
    assert sides != tiff
    frames = [Image.new("L", (900, 900), shade) for shade in range(60)]
    frames[0].save(folder / "bomb-frames.gif", save_all=True, append_images=frames[1:])
    start = bytes([0, 0, 8, 1])
    (folder / "bomb-more.gz").write_bytes(gzip.compress(start + struct.pack(">I", 5)) + packed_zeros(31))
    (folder / "bomb-long.gz").write_bytes(gzip.compress(start + struct.pack(">I", ZEROS)) + packed_zeros(31))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (ZEROS,)})
    write_zip(folder / "bomb.npz", **{"a.npy": head.getvalue()})
    with zipfile.ZipFile(folder / "bomb-shape.npz", "w") as archive:
        archive.writestr("a.npy", head.getvalue().replace(str(ZEROS).encode(), b"9" * len(str(ZEROS)))[:200])
    for suffix in ("pt", "pth"):
        write_zip(folder / f"bomb.{suffix}", x__data__0=b"", x__version=b"3\n")
    (folder / "bomb.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    network = Autoencoder("bilinear", channels=(2, 3))
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"channels": [20_000, 20_000]}))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is counted as Linux does")
def test_bombs_take_no_memory(tmp_path):
    """Each unpacks to 128 MiB or more; the largest limit of a file here is 16 MB."""
    write_bombs(tmp_path)
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 2**20
    words = [sys.executable, "-W", "error", "-c", BOMBS, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    grown = {name: megabytes for name, (_, megabytes) in told.items() if megabytes > 60}
    assert grown == {}
    said = {name: text for name, (text, _) in told.items()}
    for name in ("bomb-sides.png", "bomb-sides.tif", "bomb-long.gz", "bomb.npz"):
        assert "FADEUP_MAX_PIXELS" in said[name], said[name]
    for name in ("bomb.pt", "bomb.pth"):
        assert "where torch.save packs nothing" in said[name], said[name]
    assert "must hold 5 values for its shape (5,), got more" in said["bomb-more.gz"]
    assert "must fit the network" in said["config.json"]
    assert "bomb.safetensors must be weights" in said["bomb.safetensors"]
    assert "bomb-shape.npz must be an .npz of plain arrays" in said["bomb-shape.npz"]
    assert said["bomb-frames.gif"] == ""  # the first is read


def test_arrays_have_a_limit_that_is_raised(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1000, np.uint8))
    monkeypatch.setenv("FADEUP_MAX_PIXELS", "60")
    with pytest.raises(
        ValueError, match=r"a\.npz must hold at most 960 bytes of arrays, got 1128; set FADEUP_MAX_PIXELS"
    ):
        read_arrays(tmp_path / "a.npz")
    monkeypatch.setenv("FADEUP_MAX_PIXELS", "71")
    assert read_arrays(tmp_path / "a.npz")["x"].shape == (1000,)


# ---- secrets ----

PLUGINS = ("AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "DiscordBotTokenDetector")
PLUGINS += ("GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector", "NpmDetector", "OpenAIDetector")
PLUGINS += ("PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector", "StripeDetector")
PLUGINS += ("TelegramBotTokenDetector", "TwilioKeyDetector", "KeywordDetector")
"""Not those that take any long number for a secret: the tests are full of digests."""


def secrets(paths):
    """Kind, file and line of what looks like a secret."""
    from detect_secrets.core.secrets_collection import SecretsCollection
    from detect_secrets.settings import transient_settings

    found = SecretsCollection()
    with transient_settings({"plugins_used": [{"name": name} for name in PLUGINS]}):
        patterns = searched()
        for path in paths:
            text = path.read_text(encoding="utf-8")
            if any(pattern.search(text) for pattern in patterns):
                found.scan_file(str(path))
    return {(secret.type, file, secret.line_number) for file, secret in found}


def searched():
    """What a file without a secret does not hold: it need not be scanned line by line, 20 times as slow."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.keyword import DENYLIST

    kinds = [kind for kind in get_mapping_from_secret_type_to_class().values() if kind.__name__ in PLUGINS]
    assert len(kinds) == len(PLUGINS)
    patterns = [pattern for kind in kinds if hasattr(kind, "denylist") for pattern in kind.denylist]
    words = "|".join(DENYLIST)
    return [re.compile(words, re.I), *(re.compile(pattern.pattern, pattern.flags | re.M) for pattern in patterns)]


needs_detect_secrets = pytest.mark.skipif(
    importlib.util.find_spec("detect_secrets") is None, reason="detect-secrets is not installed"
)


@needs_detect_secrets
def test_no_secret_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    texts = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    texts = [path for path in texts if b"\0" not in path.read_bytes()[:8192]]
    assert len(texts) > 200
    assert secrets(texts) == set()


@needs_detect_secrets
@pytest.mark.parametrize(
    "line",
    [
        "AWS = 'AKIA" + "QWERTYUIOPASDFGH'",
        "token: ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
        "-----BEGIN RSA PRIVATE" + " KEY-----",
        "pass" + "word = 'correct-horse-battery'",
        "url = 'https://user:" + "hunter2hunter2@host.org'",
    ],
)
def test_a_planted_secret_is_found(tmp_path, line):
    (tmp_path / "settings.py").write_text(f"x = 1\n{line}\n")
    assert {(file, number) for _, file, number in secrets([tmp_path / "settings.py"])} == {
        (str(tmp_path / "settings.py"), 2)
    }
