"""What is published: the contents of wheel and sdist, their metadata, licences and citation."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import wheels
import yaml
from packaging.metadata import Metadata

import fadeup

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/fadeup"
ASSETS = PACKAGE / "assets"
NOTICE = (ROOT / "NOTICE").read_text("utf-8")
ABOUT = f"fadeup-{fadeup.__version__}.dist-info"
LICENCE = re.compile(r"MIT License|Apache License, version 2\.0|CC0 1\.0")


def build(root: Path, to: Path, *targets: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(to)]
    for target in targets:
        command += ["--target", target]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel of this checkout, built without a network."""
    pytest.importorskip("hatchling", reason="needs hatchling, of the dev extra")
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder, "sdist", "wheel")
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    return dist / f"fadeup-{fadeup.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def sdist(dist) -> Path:
    return dist / f"fadeup-{fadeup.__version__}.tar.gz"


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as file:
        return file.read(name).decode()


# ---- wheel and sdist ----


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    paths = (
        path for path in PACKAGE.rglob("*") if path.is_file() and path.parent.name not in ("__pycache__", "prebuilt")
    )
    package = {path.relative_to(PACKAGE.parent).as_posix() for path in paths}
    assert {"fadeup/py.typed", "fadeup/kernels/native.cpp", "fadeup/report.html.jinja"} <= package
    assert {name for name in names(wheel) if not name.startswith(ABOUT)} == package


def test_the_wheel_serves_every_machine(wheel):
    about = read(wheel, f"{ABOUT}/WHEEL")
    assert "Root-Is-Purelib: true" in about
    assert re.findall("^Tag: (.*)$", about, re.MULTILINE) == ["py3-none-any"]
    assert read(wheel, f"{ABOUT}/entry_points.txt").split() == ["[console_scripts]", "fadeup", "=", "fadeup.cli:main"]


def test_all_licences_are_in_the_wheel(wheel):
    licences = {path.relative_to(ROOT).as_posix() for path in ASSETS.glob("*/LICENSE")} | {"LICENSE", "NOTICE"}
    assert len(licences) > 3
    prefix = f"{ABOUT}/licenses/"
    assert {name.removeprefix(prefix) for name in names(wheel) if name.startswith(prefix)} == licences
    assert read(wheel, f"{prefix}NOTICE") == NOTICE


def test_the_metadata_are_valid_and_say_what_pyproject_says(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = Metadata.from_email(read(wheel, f"{ABOUT}/METADATA"), validate=True)
    assert (found.name, str(found.version)) == ("fadeup", fadeup.__version__)
    assert found.license_expression == project["license"] == "Apache-2.0"
    assert found.summary == project["description"]
    assert str(found.requires_python) == project["requires-python"]
    needed = {str(requirement) for requirement in found.requires_dist or () if requirement.marker is None}
    assert needed == set(project["dependencies"])
    assert set(found.provides_extra or ()) == set(project["optional-dependencies"])
    assert found.description_content_type == "text/markdown"
    assert found.description == (ROOT / "README.md").read_text("utf-8")


def test_the_sdist_holds_every_file_of_the_repository(sdist):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    with tarfile.open(sdist) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert tracked - held == set()
    assert not [name for name in held if "__pycache__" in name or name.endswith((".so", ".pyc"))]


def test_the_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter="data")
    build(tmp_path / f"fadeup-{fadeup.__version__}", tmp_path / "dist", "wheel")
    assert filecmp.cmp(wheel, tmp_path / "dist" / wheel.name, shallow=False)


def test_sizes(wheel, sdist):
    assert wheel.stat().st_size <= wheels.MOST[".whl"] == 25_000_000
    assert sdist.stat().st_size <= wheels.MOST[".gz"]
    assert (
        sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= wheels.MOST["assets"] == 16_000_000
    )


# ---- what is checked before files are published ----

GOOD = {"auditwheel": 'x is consistent\nwith the following platform tag: "manylinux_2_27_x86_64".'}


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Checks small files; the tools say what they are made to say."""
    files = [tmp_path / "fadeup-0.tar.gz", tmp_path / "fadeup-0-any.whl"]
    for path in files:
        path.write_bytes(bytes(100))

    def check(says: dict[str, str]) -> None:
        monkeypatch.setattr(wheels, "run", lambda program, *words: says.get(program.name, ""))
        wheels.check(files, tmp_path)

    return check


def test_good_files_pass(told, capsys):
    told(GOOD)
    assert "100  fadeup-0.tar.gz" in capsys.readouterr().out


@pytest.mark.parametrize("verdict", ['platform tag: "manylinux_2_36_x86_64"', 'platform tag: "linux_x86_64"', ""])
def test_libraries_that_need_a_newer_system_are_refused(told, verdict):
    with pytest.raises(SystemExit, match="the libraries must run on manylinux_2_28_x86_64, got: "):
        told({"auditwheel": f"x is consistent with the following {verdict}"})


@pytest.mark.parametrize("kind", [".whl", ".gz", "assets"])
def test_files_that_are_too_large_are_refused(told, monkeypatch, kind):
    monkeypatch.setitem(wheels.MOST, kind, 99)
    with pytest.raises(SystemExit, match=r"(fadeup-0.*|src/fadeup/assets) must have at most 99 bytes, got \d+"):
        told(GOOD)


def test_a_tool_that_fails_ends_it(capsys):
    assert wheels.run(sys.executable, "-c", "print(1)") == "1\n"
    with pytest.raises(SystemExit, match="failed: exit code 3"):
        wheels.run(sys.executable, "-c", "import sys; sys.exit(3)")


# ---- licences and citation ----


def paragraphs() -> dict[str, str]:
    """The paragraphs of NOTICE by the folder that each begins with."""
    parts = re.split(r"^(src/\S+)\n", NOTICE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_notice_has_a_licence_for_every_folder_of_shipped_data():
    folders = {path.relative_to(ROOT).as_posix() for path in ASSETS.iterdir() if path.is_dir()}
    assert paragraphs().keys() == folders
    for folder, text in paragraphs().items():
        assert LICENCE.search(text), folder
        assert ((ROOT / folder / "LICENSE").exists()) == (f"{folder}/LICENSE" in text)


def test_notice_names_what_the_networks_were_trained_on():
    text = " ".join(NOTICE.split())
    for entry in json.loads((ASSETS / "models.json").read_text("utf-8")):
        assert f"{entry['name'].split('-')[0]}-*: trained on" in text
        for terms in re.findall(r"GPL-2|CC-BY-SA-4\.0|CC-BY-4\.0|Apache-2\.0", entry["data"] + entry["start"]):
            assert terms.replace("Apache-2.0", "Apache License, version 2.0") in text


def test_every_path_in_notice_is_there():
    assert [path for path in re.findall(r"src/fadeup/[\w/-]+", NOTICE) if not (ROOT / path).exists()] == []


def test_the_citation_is_valid():
    """Against the rules of the Citation File Format 1.2.0 that apply here; scripts/wheels.py checks all of them."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"], cited["type"]) == (fadeup.__version__, "Apache-2.0", "software")
    for work in (cited, *cited["references"]):
        assert work["title"]
        assert work["authors"]
        for author in work["authors"]:
            assert author.keys() in ({"name"}, {"family-names", "given-names"})
    for work in cited["references"]:
        assert work["type"] in ("article", "conference-paper")
        assert isinstance(work["year"], int)
        assert {"journal", "doi"} <= work.keys() or {"collection-title", "conference"} <= work.keys()
        assert re.fullmatch(r"10\.\d{4,9}/\S+", work.get("doi", "10.1234/x"))
        assert work.get("start", 0) <= work.get("end", 0)


def test_every_upsampler_paper_is_cited():
    cited = {work["title"] for work in yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["references"]}
    for word in (
        "FADE: Fusing",
        "FADE: A Task",
        "CARAFE",
        "Indices Matter",
        "Affinity-Aware",
        "SAPA",
        "Learning to Sample",
    ):
        assert any(word in title for title in cited), word
