"""The pages: what they say, that text stays text, how they hold in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_results import (
    N_PEOPLE,
    NASTY,
    PHOTO,
    made_up_metrics,
    write_photo,
    write_results,
    write_run,
)

import dataset_11k
import measures.registry
from dataset_11k import TASKS
from measures.pairs import Verification, compare_all, pairwise_similarity
from pages import build, charts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
STYLE = (Path(build.__file__).parent / "templates" / "style.css").read_text()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the charts empty: drawing them takes nearly all of the time."""
    monkeypatch.setattr(charts, "encode_svg", lambda figure: b"<svg/>")
    monkeypatch.setattr(build, "save_figure", lambda figure, path, dpi=0: None)


quickly = pytest.mark.usefixtures("undrawn")


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text.partition("</style>")[2])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def titles(page: Path) -> list[str]:
    found = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page.read_text(encoding="utf-8"))
    return [html.unescape(title) for title in found]


def words(page: Path) -> str:
    return " ".join(Tags(page.read_text(encoding="utf-8")).text.split())


# ----------------------------------------------------------------------------- report.html


def test_a_report_has_every_section_and_its_pictures(tmp_path: Path) -> None:
    folder = write_results(write_run(tmp_path / "run") / "evaluation")
    page = build.write_report(folder, photos=write_photo(tmp_path / "Hands"))
    assert page == folder / "report.html"
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"sample_grid.png", *(f"confusion_{task}.png" for task in TASKS)}
    for title in (
        "Summary",
        "Age group: mean absolute error",
        "All pairs: EER",
        "Baselines and leakage",
        "Confusion matrices",
        "Cumulative match characteristic (CMC)",
        "Detection error trade-off (DET)",
        "Calibration (reliability diagram)",
        "Age",
        "Performance by group",
        "Pairs more than 2 frames apart: EER",
        "Results by person",
        "Random photos",
        "Most confident errors: identity",
        "Training loss by task",
        "Reproducibility",
        "Terms",
    ):
        assert title in titles(page)
    for sentence in (
        "72 photos of 12 people, aspect dorsal_dr (dorsal right), val split of protocol paper.",
        "Half of the photos train.",
        "No interval covers a class of fewer than 10 people",
        "Gender: people of each class",
        "The epoch was selected on this split, so the scores are optimistic.",
        "a frame of the same person at most 2 away 90.0 %",
        "The people on these photos were seen in training.",
        "a score is no proof of identity",
        "def456",
        "2.14.1",
    ):
        assert sentence in words(page)


@quickly
def test_error_rates_by_pair_of_groups_are_a_table(tmp_path: Path) -> None:
    empty = {"value": None, "low": None, "high": None, "n_pairs": 0, "n_people": 0}
    rate = {"value": 0.0123, "low": 0.004, "high": 0.03, "n_pairs": 4321, "n_people": 31}
    cell = {"fmr": rate, "fnmr": empty}
    metrics = made_up_metrics()
    metrics["tasks"]["identity"]["verification"]["all_pairs"]["differentials"] = {
        **{"fmr": 0.01, "threshold": 0.8125},
        "groups": {"skin_color": {NASTY: {NASTY: cell, "fair": cell}}},
    }
    page = build.write_report(write_results(tmp_path / "evaluation", metrics=metrics), photos=None)
    for sentence in (
        "all pairs: similarity above 0.812, which 1.0 % of all impostor pairs exceed",
        f"skin colour: {NASTY} 1.2 % 0.4 to 3.0 % 4,321 31 – – 0 0",
        f"skin colour: {NASTY} with fair 1.2 %",
    ):
        assert sentence in words(page)


@quickly
def test_unseen_people_are_matched_and_not_classified(tmp_path: Path) -> None:
    page = build.write_report(write_results(tmp_path / "evaluation", unseen=True), photos=None)
    found = titles(page)
    expected = {
        "All pairs: rank-1 (in 12 photos of 12 people)",
        "Rank-1 by size of the gallery",
        "Rank-1 by photos per probe",
        "Tippett plot",
    }
    assert (expected | {"Training"}) & set(found) == expected
    assert charts.gallery_charts({"all_pairs": {"rank_1": 0.5}}) == []  # of an older test.py
    # 6 photos of each person, of which one is in the gallery
    counts = "12 people have 1, 12 people have 2, 12 people have 4, 0 people have 8 photos."
    assert f"left out as probes: {counts}" in words(page)
    assert "Identity" not in found
    assert "Nobody on these photos was seen in training" in words(page)
    assert "No photos: hand photos are biometric data and were left out." in words(page)


def test_the_det_band_is_the_interval_of_fnmr_where_enough_people_support_it() -> None:
    people = np.repeat([f"p{i:02}" for i in range(30)], 4)
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((30, 12))[np.repeat(np.arange(30), 4)]
    embeddings += 0.7 * random.standard_normal(embeddings.shape)
    similarity = pairwise_similarity(embeddings, people, people, 0)
    verification = Verification(compare_all(similarity, people))
    band = charts.det_band(verification)
    assert band.x[0] == pytest.approx(30 / (30 * 29 / 2), rel=0.01)
    curve = verification.curve()
    fnmr = [curve.fnmr[np.argmax(curve.fmr <= x)] for x in band.x]
    drawn = ~np.isnan(band.low)
    assert drawn.tolist() == [rate > 0 for rate in fnmr]
    assert 5 < drawn.sum() < len(drawn)
    assert (band.low < fnmr)[drawn].all()
    assert (fnmr < band.high)[drawn].all()
    few = Verification(compare_all(similarity[:20, :20], people[:20]))
    assert np.isnan(charts.det_band(few).low).all()  # 10 pairs of people


@quickly
def test_identity_alone_of_unseen_people_has_pairs_only(tmp_path: Path) -> None:
    metrics = made_up_metrics(unseen=True)
    metrics["tasks"] = {"identity": metrics["tasks"]["identity"]}
    folder = write_results(tmp_path / "evaluation", unseen=True, metrics=metrics)
    page = build.write_report(folder, photos=write_photo(tmp_path / "Hands"))
    assert {"All pairs: mAP", "Random photos", "Tippett plot"} <= set(titles(page))
    assert not {"Confusion matrices", "Results by person"} & set(titles(page))


ABSENT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "leakage": (lambda m: m.update(leakage=None), "close to training photos"),
    "pairs": (lambda m: m["tasks"]["identity"].pop("verification"), "All pairs: EER"),
    "a task": (lambda m: m["tasks"].pop("age"), "Most confident errors: age group"),
    "a null task": (lambda m: m["tasks"].update(identity=None), "Most confident errors: identity"),
}


@quickly
@pytest.mark.parametrize("name", list(ABSENT))
def test_what_was_not_measured_is_left_out(tmp_path: Path, name: str) -> None:
    remove, sentence = ABSENT[name]
    metrics = made_up_metrics()
    photos = write_photo(tmp_path / "Hands")
    whole = build.write_report(write_results(tmp_path / "whole", metrics=metrics), photos=photos)
    assert sentence in words(whole)
    remove(metrics)
    page = build.write_report(write_results(tmp_path / "part", metrics=metrics), photos=photos)
    assert sentence not in words(page)
    assert "Gender: balanced accuracy" in titles(page)


def test_a_fourth_task_and_a_new_measure_appear_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dataset_11k.Task("skinColor", "skin colour", ("dark", "fair"))
    monkeypatch.setitem(TASKS, "skin", row)
    balanced = measures.registry.MEASURES["balanced_accuracy"]
    new = replace(balanced, key="new", name="new measure", explanation="What is new.")
    monkeypatch.setitem(measures.registry.MEASURES, "new", new)
    metrics = made_up_metrics()
    block = metrics["tasks"]["gender"]
    for part in (block, block["intervals"], block["groups"]["gender"]):
        part["new"] = part["balanced_accuracy"]
    metrics["tasks"]["skin"] = block
    folder = write_results(tmp_path / "evaluation", metrics=metrics)
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    arrays = dict(np.load(folder / "predictions.npz"))
    for part in ("true", "pred", "prob"):
        table[f"skin_{part}"] = table[f"gender_{part}"].replace({"male": "fair", "female": "dark"})
    for part in ("true", "logits", "temperature"):
        arrays[f"skin_{part}"] = arrays[f"gender_{part}"]
    arrays["skin_classes"] = np.array(row.classes)
    table.to_csv(folder / "predictions.csv", index=False)
    np.savez(folder / "predictions.npz", **arrays)
    page = build.write_report(folder, photos=write_photo(tmp_path / "Hands"))
    assert (folder / "confusion_skin.png").is_file()
    found = titles(page)
    assert found.count("Skin colour") == 2  # confusion matrix, reliability diagram
    assert found.count("Skin colour: new measure") == 2  # card, chart by group
    assert "Most confident errors: skin colour" in found
    assert "New measure What is new." in words(page)


@quickly
def test_text_of_files_never_becomes_markup_or_a_template(tmp_path: Path) -> None:
    metrics = made_up_metrics() | dict.fromkeys(("aspect", "backbone", "protocol_reason"), NASTY)
    folder = write_results(write_run(tmp_path / "run") / "evaluation", metrics=metrics)
    pages = (
        build.write_report(folder, photos=write_photo(tmp_path / "Hands")),
        build.write_training_report(tmp_path / "run"),
    )
    for page in pages:
        found = Tags(page.read_text(encoding="utf-8"))
        assert not found.of("script")
        assert not found.of("b")
        assert NASTY in found.text
    alts = [image["alt"] for image in Tags(pages[0].read_text()).of("img")]
    assert any(alt and NASTY in alt and PHOTO in alt for alt in alts)


def test_long_and_strange_ids_draw_without_warnings_the_same_bytes_twice(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = write_results(tmp_path / "evaluation")
    photos = write_photo(tmp_path / "Hands")
    names = ("report.html", "confusion_identity.png", "sample_grid.png")
    build.write_report(folder, photos=photos)
    first = [(folder / name).read_bytes() for name in names]
    build.write_report(folder, photos=photos)
    assert [(folder / name).read_bytes() for name in names] == first
    assert [str(w.message) for w in recwarn if "Glyph" in str(w.message)] == []
    assert len(first[0]) < 5_000_000


@quickly
def test_photos_and_people_with_the_most_errors_come_first(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "evaluation")
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    for task in TASKS:
        bad = table["identity_true"] == "0000003"
        table[f"{task}_pred"] = table[f"{task}_true"].where(~bad, "another")
    table.to_csv(folder / "predictions.csv", index=False)
    chosen = build.choose_photos(build.read_results(folder))
    assert chosen == build.choose_photos(build.read_results(folder))
    assert chosen["Most confident errors: gender"] == [63, 51, 39, 27, 15, 3]
    text = words(build.write_report(folder, photos=None))
    worst = text.partition("People with the most errors")[2].partition(f"All {N_PEOPLE}")[0]
    assert worst.split("age group ")[1].startswith("0000003 6 0.0 % 0.0 % 0.0 %")


# ----------------------------------------------------------------------------- training.html


@quickly
def test_a_training_report_has_curves_the_best_epoch_and_the_flags(tmp_path: Path) -> None:
    page = build.write_training_report(write_run(tmp_path / "run"))
    assert page == tmp_path / "run" / "training.html"
    for title in ("Loss", "Training loss by task", "Identity", "Gender", "Learning rate"):
        assert title in titles(page)
    for sentence in ("Epoch 2 was selected", "gender: balanced accuracy 60.0 %", "c0ffee", "0ff"):
        assert sentence in words(page)


@quickly
def test_curves_of_unseen_people_have_their_own_axes(tmp_path: Path) -> None:
    page = build.write_training_report(write_run(tmp_path / "run", unseen=True))
    assert "Loss" not in titles(page)
    assert "Without the identity loss" in words(page)
    alts = {image["alt"] for image in Tags(page.read_text()).of("img")}
    assert {
        "Training loss over epochs. Last values: train, all tasks 1.",
        "Validation loss over epochs. Last values: val, gender and age group 1.",
        "Identity over epochs. Last values: train, accuracy 0.5.",
        "Unseen people in val: rank-1 over epochs. Last values: val, rank-1 0.5.",
    } <= alts


# ----------------------------------------------------------------------------- the page itself


@quickly
def test_a_page_loads_nothing_and_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    page = build.write_report(write_results(tmp_path / "evaluation"), photos=None)
    text = page.read_text(encoding="utf-8")
    found = Tags("</style>" + text)
    links = [a[key] for _, a in found.tags for key in ("src", "href") if a.get(key)]
    assert all(str(link).startswith(("data:", "#")) for link in links)
    policy = [a["content"] for a in found.of("meta") if "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert found.of("html")[0]["lang"] == "en"
    anchors = {str(link)[1:] for link in links if str(link).startswith("#")}
    assert anchors == {"main", *(str(a["id"]) for a in found.of("section"))}
    assert all(a["scope"] for a in found.of("th"))
    assert len(found.of("caption")) == len(found.of("table"))
    assert all(a["alt"] for a in found.of("img"))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast_meets_wcag_aa(scheme: str) -> None:
    light, dark, _ = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    rules = light if scheme == "light" else light + dark
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", rules))
    for ink in ("ink", "quiet", "link"):
        for paper in ("paper", "soft", "warn"):
            low, high = sorted(luminance(colours[key]) for key in (ink, paper))
            assert (high + 0.05) / (low + 0.05) >= 4.5


# ----------------------------------------------------------------------------- in a browser

MEASURE = """<script>
window.addEventListener("load", () => {
  const root = document.documentElement, findings = [];
  for (const opened of [false, true]) {
    document.querySelectorAll("details").forEach(box => { box.open = opened; });
    findings.push({
      inner: window.innerWidth, wide: root.scrollWidth, room: root.clientWidth,
      outside: [...document.querySelectorAll("main *")].filter(element =>
        !element.closest(".scroll table") &&
        element.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML)
    });
  }
  const images = [...document.images].map(i => [i.alt.length, i.naturalWidth, i.clientWidth]);
  const boxes = [...document.querySelectorAll(".scroll")].map(box => box.tabIndex);
  parent.postMessage(JSON.stringify({findings, images, boxes}), "*");
});
</script></body>"""

FRAME = """<!DOCTYPE html><title></title>
<script>window.onmessage = message => { document.title = message.data; };</script>
<iframe src="copy.html" style="border: 0; width: {width}px; height: 900px"></iframe>"""


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in Chromium; stdout is its content at the end, stderr what it logs."""
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", *flags]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    return subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )


def measure_page(page: Path, width: int, tmp_path: Path) -> Mapping[str, Any]:
    """Return what a copy of the page, allowed to run a script, measures of itself in a frame."""
    text, n_policies = re.subn(
        r"<meta http-equiv.*?>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert n_policies == 1
    (tmp_path / "copy.html").write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
    window = ("--window-size=1600,1000", "--virtual-time-budget=5000")
    dumped = browse(tmp_path / "frame.html", tmp_path / "profile", *window).stdout
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dumped, re.DOTALL)[1]))  # type: ignore[index]


@in_a_browser
@pytest.mark.parametrize("kind", ["report", "training"])
def test_a_page_fits_a_screen_and_a_telephone(tmp_path: Path, kind: str) -> None:
    run = write_run(tmp_path / "run")
    page = build.write_training_report(run)
    if kind == "report":
        photos = write_photo(tmp_path / "Hands")
        page = build.write_report(write_results(run / "evaluation"), photos=photos)
    assert "CONSOLE" not in browse(page, tmp_path / "profile").stderr
    for width in (1280, 400):
        found = measure_page(page, width, tmp_path)
        for state in found["findings"]:
            assert state["inner"] == width
            assert state["wide"] <= state["room"]
            assert state["outside"] == []
        assert len(found["images"]) >= 6
        assert all(min(image) > 0 for image in found["images"])
        assert all(index == 0 for index in found["boxes"])
