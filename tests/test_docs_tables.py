"""The tables of docs/choosing.md and docs/papers.md are those of the results, and the results those of the lab log."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import docs_results
import docs_tables
import pytest
from docs_results import ROOT, SAME, difference_text, results, score_text

from fadeup.recipes import RECIPES

EXPERIMENTS = results("experiments")["experiments"]
PAPERS = {paper["id"]: paper for paper in results("experiments")["papers"]}
OF_RECIPES = {
    "reconstruction": ["table1-reconstruction"],
    "sunrgbd": ["table1-sunrgbd"],
    "weizmann": ["table2"],
    "ade20k": ["code-segmentation"],
    "composition1k": ["code-matting", "table4"],
}
DERIVED = {
    "4.11": 44.11 - 40.00,
    "2.60": 50.50 - 47.90,
    "0.61": 90.26 - 89.65,
    "1.22": 325 / 266,
    "2.1": 3_500 * 2.2 / 3600,
    "3500": 50 * 70,
    "44000": 100 * (5_285 // 12),
    "180000": 30 * 6_000,
    "0.0606": 10 ** (-24.35 / 20),
    "0.0037": 10 ** (-24.35 / 10),
    "3.4": 100 * (1.509 / 1.46 - 1),
    "0.9": 100 * (1 - 0.654 / 0.66),
    "1.5": 100 * (1 - 0.404 / 0.41),
    "0.8": 100 * (31.944 / 31.70 - 1),
}
ELSEWHERE = {"0.60", "44.25", "144000", "8.61"}
"""Of the authors' logs and papers."""
UPSAMPLER_PAGES = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "docs/upsamplers").glob("*.md")))


def numbers(text: str) -> Counter[str]:
    """Thousands without commas; the 0 of EfficientNet-Lite0 is none."""
    return Counter(re.findall(r"(?<![\w.])[+−]?\d+(?:\.\d+)*(?:e-?\d+)?", re.sub(r"(?<=\d)[,_](?=\d{3})", "", text)))


def section(date: str, title: str) -> str:
    log = (ROOT / "docs/lab-log.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {date} — {re.escape(title)}$.*?(?=^## |\Z)", log, re.MULTILINE | re.DOTALL)
    assert found, f"the lab log has no entry of {date}, {title}"
    return found[0]


def texts(row: dict[str, Any]) -> str:
    """The numbers of a row, as the log writes them."""
    parts = [score_text(metric, score) for key in ("scores", "before") for metric, score in row.get(key, {}).items()]
    parts += [difference_text(difference) for difference in row.get("differences", {}).values()]
    parts += [row[key] for key in ("parameters", "macs", "each_seed", "blend") if key in row]
    parts += [str(row["seconds"])] if "seconds" in row else []
    return " ; ".join(parts + ([f"{row['loss']:.3f}"] if "loss" in row else []))


def lines(experiment: dict[str, Any]) -> list[str]:
    """The lines of the entry's tables, or the entry as one."""
    text = section(experiment["date"], experiment["title"])
    return [text] if experiment.get("in_words") else [line for line in text.splitlines() if line.startswith("|")]


def words(experiment: dict[str, Any]) -> Iterator[str]:
    yield from experiment["setting"].values()
    yield from (experiment["command"] or "", experiment["cost"], *experiment["missing"])
    yield from (f"{seconds:.2f}" for seconds in experiment.get("step_seconds", {}).values())


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment["id"])
def test_every_number_stands_in_the_lab_log(experiment):
    for row in experiment["rows"]:
        wanted = numbers(texts(row))
        assert wanted, row
        assert any(wanted <= numbers(line) for line in lines(experiment)), f"no line of the log has {texts(row)}"
    entries = [(experiment["date"], experiment["title"]), *filter(None, [experiment.get("setting_from")])]
    known = numbers(" ".join(section(*entry) for entry in entries))
    assert numbers(" ; ".join(words(experiment))).keys() <= known.keys()


@pytest.mark.parametrize("entry", dict.fromkeys((e["date"], e["title"]) for e in EXPERIMENTS), ids=lambda e: e[1])
def test_every_row_of_an_entry_is_kept(entry):
    experiments = [e for e in EXPERIMENTS if (e["date"], e["title"]) == entry and not e.get("in_words")]
    kept = [numbers(texts(row)) for experiment in experiments for row in experiment["rows"]]
    for line in section(*entry).splitlines() if experiments else ():
        if line.startswith("|") and re.search(r"\| \d+\.\d", line):
            assert any(row <= numbers(line) for row in kept), f"not in experiments.json: {line}"


def test_verdicts_follow_from_intervals():
    for experiment in EXPERIMENTS:
        for row in experiment["rows"]:
            for metric, found in row.get("differences", {}).items():
                sign = 1 if results("experiments")["metrics"][metric]["better"] == "higher" else -1
                low, high = sorted((sign * found["low"], sign * found["high"]))
                expected = "better" if low > 0 else "worse" if high < 0 else "undecided"
                assert found["verdict"] == expected, (experiment["id"], row["upsampler"])


@pytest.mark.parametrize("task", OF_RECIPES)
def test_papers_are_those_of_the_recipes(task):
    for name in OF_RECIPES[task]:
        rows = {SAME.get(row["upsampler"], row["upsampler"]): row["scores"] for row in PAPERS[name]["rows"]}
        for upsampler, scores in RECIPES[task].paper.items():
            kept = rows.get(SAME.get(upsampler, upsampler), {})
            assert all(kept[metric]["mean"] == scores[metric] for metric in kept.keys() & scores.keys())
    both = {row["upsampler"] for name in OF_RECIPES[task] for row in PAPERS[name]["rows"]}
    assert both >= RECIPES[task].paper.keys()


@pytest.mark.parametrize("name", ["table3-matting", "table3-segmentation", "table4", "later-segmentation"])
def test_papers_are_those_of_the_upsamplers_pages(name):
    known = numbers(UPSAMPLER_PAGES)
    for row in PAPERS[name]["rows"]:
        places = PAPERS[name].get("digits", {})
        wanted = numbers(" ; ".join(score_text(m, score, places.get(m)) for m, score in row["scores"].items()))
        assert wanted.keys() <= known.keys(), (name, row["upsampler"])


def test_pages_are_current():
    assert docs_tables.stale() == []


@pytest.mark.parametrize("page", docs_tables.PAGES)
def test_numbers_between_the_tables_have_a_source(page):
    """Those with a decimal point or of four digits and more."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    told = numbers("\n".join(line for line in text.splitlines() if not line.startswith("|")))
    others = [path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md") if path.name != "papers.md"]
    tables = [
        line for page in docs_tables.PAGES for line in (ROOT / page).read_text("utf-8").splitlines() if "|" in line
    ]
    known = numbers(
        " ; ".join([*tables, *(text for text in others if "# Which upsampler" not in text), UPSAMPLER_PAGES])
    )
    large = {number for number in told if "." in number or len(number) > 3}
    assert large <= {number.lstrip("+") for number in known} | DERIVED.keys() | ELSEWHERE


@pytest.mark.parametrize("text", DERIVED)
def test_what_is_computed_in_the_text_is_right(text):
    assert f"{DERIVED[text]:.{len(text.partition('.')[2])}f}" == text


def test_a_changed_page_is_found_and_mended(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for page in docs_tables.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        (tmp_path / page).write_text(text.replace("<!-- matting:end -->", "| `fade` | 1.0 |\n<!-- matting:end -->"))
    monkeypatch.setattr(docs_tables, "ROOT", tmp_path)
    assert docs_tables.stale() == ["docs/choosing.md"]
    monkeypatch.setattr("sys.argv", ["docs_tables.py", "--check"])
    with pytest.raises(SystemExit, match=r"docs/choosing.md is not current"):
        docs_tables.main()
    monkeypatch.setattr("sys.argv", ["docs_tables.py"])
    docs_tables.main()
    monkeypatch.setattr("sys.argv", ["docs_tables.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        docs_tables.main()
    assert ended.value.code == 0
    assert (tmp_path / "docs/choosing.md").read_text("utf-8") == (ROOT / "docs/choosing.md").read_text("utf-8")


def test_every_mark_has_a_table():
    for page, made in docs_tables.PAGES.items():
        marks = re.findall(r"<!-- ([\w-]+):begin -->", (ROOT / page).read_text(encoding="utf-8"))
        assert sorted(marks) == sorted(made), page


@pytest.mark.parametrize(
    ("claim", "value", "expected"),
    [
        ("+0.26M", 263_824, True),
        ("+38K", 40_232, False),
        ("+8.85", 8_853_000_000, True),
        ("+1.46", 1_509_000_000, False),
    ],
)
def test_claims_are_compared_as_they_are_rounded(claim, value, expected):
    assert docs_tables.agrees(claim, value) is expected


def test_a_number_that_was_not_measured_stays_out():
    cell = docs_results.scores("experiments", "camvid", ["miou", "psnr"])
    assert (cell("fade"), cell("sapa")) == ("47.20 / –", "–")
    assert docs_results.own(["landcover-starts", "landcover-all"], "miou")("indexnet") == "50.53; no interval"
