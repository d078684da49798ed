"""Builds what is published into dist/, and tries each file in an environment that has nothing else.

    make wheels          source, pure wheel, and a wheel with the CPU kernels for x86-64 Linux; needs g++ and PyPI

The kernels are compiled for two levels of x86-64, of which `fadeup.kernels.native` chooses one at load. They ask for
nothing newer than glibc 2.28, which auditwheel confirms.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from fadeup.kernels import native

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
PLATFORM = "manylinux_2_28_x86_64"
TOOLS = ("auditwheel>=6.2", "build>=1.2", "cffconvert>=2.0", "hatchling>=1.25", "twine>=6.1", "wheel>=0.45")
INSTALL = ("install", "--quiet", "--disable-pip-version-check", "--no-compile")
MOST = {".whl": 25_000_000, ".gz": 25_000_000, "assets": 16_000_000}
# exp of glibc 2.29 differs from the older one in how it reports errors, which nothing here asks for.
OLD_GLIBC = '__asm__(".symver exp,exp@GLIBC_2.2.5");\n'

SMOKE = """
import importlib.metadata, sys, warnings, torch, fadeup
from fadeup.kernels import native
version, level = sys.argv[1:]
assert fadeup.__version__ == importlib.metadata.version("fadeup") == version
assert {"site-packages"} <= set(fadeup.__file__.split("/")), fadeup.__file__
if level == "none":
    warnings.filterwarnings("ignore", "fadeup's CPU kernels could not be built .FADEUP_JIT=0 forbids compiling")
    impl = "eager"
    assert "FADEUP_JIT=0" in native.problem()
else:
    native.LEVELS = {level: native.LEVELS[level]}
    impl = "native"
    assert native.library().level == level, native.library()
upsampler, maps = fadeup.build_upsampler("fade", 64, 32), (torch.randn(2, 64, 9, 7), torch.randn(2, 32, 17, 14))
for x in maps:
    x.requires_grad_()
upsampler(*maps).square().sum().backward()
assert all(x.grad.isfinite().all() and x.grad.any() for x in maps)
got = {}
for name in (impl, "reference"):
    maps = torch.manual_seed(0) and [torch.randn(2, 64, 9, 7, requires_grad=True), torch.randn(2, 25, 17, 14)]
    out = fadeup.reassemble(*maps, impl=name)
    out.square().sum().backward()
    got[name] = out, maps[0].grad
torch.testing.assert_close(got[impl], got["reference"])
print(f"fadeup {version}, torch {torch.__version__}: {impl} computes, {level}")
"""


def run(*command: str | Path, **options) -> str:
    print("+", *(str(word) if "\n" not in str(word) else "…" for word in command), flush=True)
    done = subprocess.run(list(map(str, command)), text=True, stdout=subprocess.PIPE, **options)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed: exit code {done.returncode}")
    return done.stdout


def environment(folder: Path, *packages: str) -> Path:
    """Where the programs of a new environment with these packages are."""
    venv.create(folder, with_pip=True)
    if packages:
        run(folder / "bin/pip", *INSTALL, *packages)
    return folder / "bin"


def prebuilt(pure: Path, work: Path, tools: Path) -> Path:
    """The pure wheel with the libraries of all levels added, and named for its platform."""
    (work / "old_glibc.h").write_text(OLD_GLIBC)
    run(tools / "wheel", "unpack", pure, "--dest", work)
    (unpacked,) = work.glob("fadeup-*/")
    (about,) = unpacked.glob("*.dist-info/WHEEL")
    folder = unpacked / native.PREBUILT.relative_to(Path(native.__file__).parents[2])
    folder.mkdir()
    native.BUILD_SECONDS = 900  # whoever publishes can wait
    for level in native.LEVELS:
        native.prebuild(level, folder, "-include", str(work / "old_glibc.h")).chmod(0o755)
        print(f"{level}: {(folder / f'native-{level}.so').stat().st_size} bytes", flush=True)
    text = about.read_text().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    about.write_text(text.replace("Tag: py3-none-any", f"Tag: py3-none-{PLATFORM}"))
    run(tools / "wheel", "pack", unpacked, "--dest-dir", DIST)
    return DIST / pure.name.replace("-any.whl", f"-{PLATFORM}.whl")


def check(files: list[Path], tools: Path) -> None:
    """Metadata, sizes, citation, and what the libraries ask of the system."""
    run(tools / "twine", "check", "--strict", *files)
    run(tools / "cffconvert", "--validate", "--infile", ROOT / "CITATION.cff")
    shown = " ".join(run(tools / "auditwheel", "show", files[-1]).split())
    found = re.search(r'consistent with the following platform tag: "manylinux_2_(\d+)_x86_64"', shown)
    if not found or int(found[1]) > 28:
        sys.exit(f"the libraries must run on {PLATFORM}, got: {shown}")
    for path in files:
        print(f"{path.stat().st_size:>10}  {path.name}")
        if path.stat().st_size > MOST[path.suffix]:
            sys.exit(f"{path.name} must have at most {MOST[path.suffix]} bytes, got {path.stat().st_size}")
    assets = sum(path.stat().st_size for path in (ROOT / "src/fadeup/assets").rglob("*") if path.is_file())
    print(f"{assets:>10}  assets")
    if assets > MOST["assets"]:
        sys.exit(f"src/fadeup/assets must have at most {MOST['assets']} bytes, got {assets}")


def smoke(path: Path, levels: list[str], work: Path, bare: Path) -> None:
    """Install the file with what it depends on, compute without a compiler and with an empty cache, and remove it."""
    version = path.name.split("-")[1].removesuffix(".tar.gz")
    run(bare / "pip", *INSTALL, path)
    for level in levels:
        cache = Path(tempfile.mkdtemp(dir=work))
        system = {"HOME": str(work), "PATH": "", "FADEUP_JIT": "0", "FADEUP_CACHE": str(cache)}
        run(bare / "python", "-I", "-c", SMOKE, version, level, cwd=work, env=system)
        run(bare / "fadeup", "doctor", cwd=work, env=system)
        if list(cache.iterdir()):
            sys.exit(f"the cache must stay empty, got {list(cache.iterdir())}")
    run(bare / "pip", "uninstall", "--quiet", "--yes", "fadeup")


def main() -> None:
    DIST.mkdir(exist_ok=True)
    for path in (*DIST.glob("fadeup-*.whl"), *DIST.glob("fadeup-*.tar.gz")):
        path.unlink()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        tools = environment(work / "tools", *TOOLS)
        run(tools / "python", "-m", "build", "--no-isolation", "--outdir", DIST, ROOT)  # the wheel out of the sdist
        run(tools / "python", "-m", "build", "--no-isolation", "--wheel", "--outdir", work / "direct", ROOT)
        (source,), (pure,), (direct,) = DIST.glob("*.tar.gz"), DIST.glob("*-any.whl"), (work / "direct").glob("*.whl")
        if not filecmp.cmp(pure, direct, shallow=False):
            sys.exit("the wheel built from the sdist must be the one built from the checkout, got another")
        files = [source, pure, prebuilt(pure, work, tools)]
        check(files, tools)
        has = set(native.cpu().split())
        levels = [level for level, needs in native.LEVELS.items() if needs <= has]
        bare = environment(work / "bare")
        for path, tried in zip(files, (["none"], ["none"], levels), strict=True):
            smoke(path, tried, work, bare)
    for level in native.LEVELS:
        print(f"{level}: {'computed here' if level in levels else 'not run: this CPU lacks instructions of it'}")


if __name__ == "__main__":
    if sys.platform != "linux" or shutil.which("g++") is None or os.uname().machine != "x86_64":
        sys.exit("wheels are built on x86-64 Linux with g++")
    main()
