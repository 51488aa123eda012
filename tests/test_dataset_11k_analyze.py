"""Counts against tables made by hand, figures whose texts keep apart, errors, the real metadata."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import dataset_11k_analyze as analyze
from data.tables import read_hand_info
from dataset_11k import HAND_INFO_COLUMNS

# id, age, gender, skin colour, accessories, nail polish, aspect, irregularities
PHOTOS = [
    ("0001", 20, "male", "fair", 0, 0, "dorsal right", 0),
    ("0001", 20, "male", "fair", 0, 0, "dorsal right", 0),
    ("0001", 20, "male", "fair", 1, 0, "dorsal left", 0),
    ("0002", 21, "female", "dark", 0, 1, "dorsal right", 1),
    ("0002", 21, "female", "dark", 0, 0, "palmar right", 0),
    ("0002", 21, "female", "dark", 0, 0, "palmar right", 0),
    ("0002", 21, "female", "dark", 1, 0, "palmar right", 0),
    ("0003", 75, "female", "medium", 1, 0, "dorsal right", 0),
]
FIGURES = [*analyze.QUESTIONS, "images_per_person"]


def write_hand_info(folder: Path, photos: list[tuple[Any, ...]]) -> Path:
    folder.mkdir(parents=True)
    lines = [",".join(HAND_INFO_COLUMNS)]
    for k, (*cells, irregularities) in enumerate(photos):
        lines.append(",".join(map(str, [*cells, f"Hand_{k}.jpg", irregularities])))
    (folder / "HandInfo.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def count_photos(folder: Path, photos: list[tuple[Any, ...]]) -> pd.DataFrame:
    return analyze.count_all(read_hand_info(write_hand_info(folder, photos) / "HandInfo.csv"))


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The counts of PHOTOS; not to be changed."""
    return count_photos(tmp_path_factory.mktemp("counts") / "11k", PHOTOS)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that are saved, by name of the file; the files hold a few bytes only."""
    figures: dict[str, Figure] = {}

    def keep(self: Figure, path: Path, **_: Any) -> None:
        figures[path.name.split(".")[1]] = self
        path.write_bytes(b"a picture")

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def count_of(counts: pd.DataFrame, place: str) -> dict[str, tuple[int, int]]:
    rows = analyze.select(counts, *place.split())
    return {value: (images, people) for value, images, people in rows.itertuples()}


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("gender all all", {"female": (5, 2), "male": (3, 1)}),
        ("gender no_accessories all", {"female": (3, 1), "male": (2, 1)}),
        ("gender all dorsal_dr", {"female": (2, 2), "male": (2, 1)}),
        ("gender no_accessories dorsal_dl", {"female": (0, 0), "male": (0, 0)}),
        ("age all all", {"20": (3, 1), "21": (4, 1), "75": (1, 1)}),
        ("age no_accessories palmar_pr", {"20": (0, 0), "21": (2, 1), "75": (0, 0)}),
        (
            "age_group all dorsal_dr",
            {
                "0-20": (2, 1),
                "21": (1, 1),
                "22": (0, 0),
                "23": (0, 0),
                "24-30": (0, 0),
                "31-75": (1, 1),
            },
        ),
        (
            "skin_color all all",
            {"very fair": (0, 0), "fair": (3, 1), "medium": (1, 1), "dark": (4, 1)},
        ),
        ("accessories all all", {"without": (5, 2), "with": (3, 3)}),
        ("accessories no_accessories all", {"without": (5, 2), "with": (0, 0)}),
        ("nail_polish all all", {"without": (7, 3), "with": (1, 1)}),
        ("irregularities no_accessories dorsal_dr", {"without": (2, 1), "with": (1, 1)}),
        ("images_per_person all all", {"1": (1, 1), "3": (3, 1), "4": (4, 1)}),
        ("images_per_person all dorsal_dr", {"1": (2, 2), "2": (2, 1)}),
        ("images_per_person no_accessories palmar_pr", {"2": (2, 1)}),
        ("images_per_person all palmar_pl", {}),
    ],
)
def test_counts(counts: pd.DataFrame, place: str, expected: dict[str, tuple[int, int]]) -> None:
    found = count_of(counts, place)
    assert found == expected
    assert list(found) == list(expected)  # the order, too


def test_images_of_every_question_add_up(counts: pd.DataFrame) -> None:
    assert list(counts) == ["question", "subset", "aspect", "value", "images", "people"]
    expected = {
        "all": {"all": 8, "dorsal_dr": 4, "dorsal_dl": 1, "palmar_pr": 3, "palmar_pl": 0},
        "no_accessories": {
            "all": 5,
            "dorsal_dr": 3,
            "dorsal_dl": 0,
            "palmar_pr": 2,
            "palmar_pl": 0,
        },
    }
    found: dict[str, dict[str, float]] = {}
    for question in FIGURES:
        for subset, aspect in itertools.product(analyze.SUBSETS, analyze.PANELS):
            images = analyze.select(counts, question, subset, aspect)["images"].sum()
            found.setdefault(subset, {})[aspect] = images
        assert found == expected, question


def test_summary(counts: pd.DataFrame) -> None:
    table = analyze.summary_table(counts)
    assert len(table) == 10
    lines = {place: list(line.values()) for place, line in table.T.to_dict().items()}
    assert lines["all", "all"] == [8, 3, "5 (2)", "3 (1)", "20-75", "1-3-4"]
    kept = [5, 2, "3 (1)", "2 (1)", "20-21", "2-2.5-3"]
    assert lines["no_accessories", "all"] == kept
    assert lines["all", "palmar_pl"] == [0, 0, "0 (0)", "0 (0)", "none", "none"]


@pytest.mark.parametrize(
    ("largest", "n_bins", "first", "last", "labels"),
    [
        (3, 3, "1", "3", ["1", "", "2"]),
        (20, 20, "1", "20", ["1", "", "2"]),
        (21, 11, "1-2", "21-22", ["1", "2", ""]),
        (187, 19, "1-10", "181-190", ["3", "", ""]),
    ],
)
def test_bins(largest: int, n_bins: int, first: str, last: str, labels: list[str]) -> None:
    table = pd.DataFrame({"images": [1, 6], "people": [1, 2]}, index=["1", "3"])
    bars = analyze.bin_people(table, largest)
    assert (len(bars), bars.index[0], bars.index[-1]) == (n_bins, first, last)
    assert bars["label"].tolist()[:3] == labels
    assert bars["height"].sum() == 3


def test_script_writes_counts_and_figures(
    counts: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = write_hand_info(tmp_path / "11k", PHOTOS), tmp_path / "a" / "b"
    assert analyze.main(["--input", str(folder), "--output", str(output)]) == 0
    names = [*(f"{name}.png" for name in FIGURES), "counts.csv"]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    for name in FIGURES:
        with Image.open(output / f"{name}.png") as picture:
            assert (picture.format, picture.size) == ("PNG", (1500, 1350))
            assert len(set(picture.convert("L").resize((50, 45)).tobytes())) > 20  # not blank
    written = pd.read_csv(output / "counts.csv", dtype={"value": str})
    pd.testing.assert_frame_equal(written, counts, check_dtype=False)
    stdout = capsys.readouterr().out
    assert "dorsal_dr       4       3                  2 (2)" in stdout
    assert stdout.splitlines()[-1].startswith(f"wrote to {output}: counts.csv, gender.png, ")


def visible_texts(figure: Figure) -> Iterator[tuple[str, Any]]:
    """Yield all texts with their extents in pixels; `figure` is drawn for that."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip():
            yield text.get_text(), text.get_window_extent(canvas.get_renderer())


def assert_texts_keep_apart(figure: Figure) -> None:
    texts = list(visible_texts(figure))
    assert len(texts) > 15
    width, height = figure.bbox.size
    for text, box in texts:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (text, box), (other, other_box) in itertools.combinations(texts, 2):
        overlap_x = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
        overlap_y = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
        # Boxes are higher than their digits: neighbours upright may touch by a pixel.
        assert min(overlap_x, overlap_y) <= 1.5, f"{text!r} lies on {other!r}"


def crowd(n_ages: int, n_frames: int) -> list[tuple[Any, ...]]:
    """Return photos of a person per age; person k has k * n_frames in three of the aspects."""
    aspects = list(analyze.ASPECTS.values())[:3]
    return [
        (f"{k:04d}", 18 + k, "female" if k % 3 else "male", "medium", frame % 2, 0, aspect, 0)
        for k in range(n_ages)
        for aspect in aspects
        for frame in range(1 + k * n_frames)
    ]


@pytest.mark.parametrize("photos", [PHOTOS[:1], crowd(58, 6)], ids=["one", "many"])
def test_texts_of_figures_keep_apart(
    drawn: dict[str, Figure],
    tmp_path: Path,
    photos: list[tuple[Any, ...]],
) -> None:
    counts = count_photos(tmp_path / "11k", photos)
    for question in ("age", "age_group"):
        analyze.plot_fractions(counts, tmp_path / f"{question}.png", question=question)
    analyze.plot_images_per_person(counts, tmp_path / "images_per_person.png")
    assert len(drawn) == 3
    for figure in drawn.values():
        assert_texts_keep_apart(figure)


def axes_texts(figure: Figure) -> dict[str, list[str]]:
    """Return the texts inside each panel by the beginning of its title."""
    return {
        axes.get_title(loc="left").replace(",", ":").split(":")[0]: [
            t.get_text() for t in axes.texts
        ]
        for axes in figure.axes
    }


def test_figure_shows_the_counts_and_the_empty_aspect(
    counts: pd.DataFrame, drawn: dict[str, Figure], tmp_path: Path
) -> None:
    analyze.plot_fractions(counts, tmp_path / "gender.png", question="gender")
    analyze.plot_images_per_person(counts, tmp_path / "images_per_person.png")
    for figure in drawn.values():
        assert axes_texts(figure)["palmar left"] == ["no photos"]
    gender = drawn["gender"]
    texts = axes_texts(gender)
    assert texts["whole data set"] == [
        "5\n(3)",
        "3\n(2)",
        "2\n(1)",
        "1\n(1)",
    ]  # images, then people
    assert texts["dorsal right"] == ["2\n(1)", "2\n(2)", "2\n(1)", "1\n(1)"]
    assert gender.axes[0].get_title(loc="left") == "whole data set: 8 (5) photos, 3 (2) people"
    heights = [round(bar.get_height(), 4) for bar in gender.axes[0].patches]  # type: ignore[attr-defined]
    assert heights == [62.5, 37.5, 37.5, 25, 66.6667, 33.3333, 33.3333, 33.3333]
    per_person = drawn["images_per_person"]
    assert axes_texts(per_person)["whole data set"] == ["1", "", "1", "1", "", "1", "1", ""]
    assert (
        per_person.axes[0].get_title(loc="left") == "whole data set, 3 (2) people: 1-3-4 (2-2.5-3)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "error: not found: {input}/HandInfo.csv. Get Hands/ and HandInfo.csv from "),
        (("dorsal left", "back"), "error: aspectOfHand is 'back', expected "),
        (("gender", "sex"), "error: missing column gender: {input}/HandInfo.csv has "),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str] | None,
    message: str,
) -> None:
    folder, output = write_hand_info(tmp_path / "11k", PHOTOS), tmp_path / "out"
    file = folder / "HandInfo.csv"
    if change is None:
        file.unlink()
    else:
        file.write_text(file.read_text("utf-8").replace(*change), "utf-8")
    assert analyze.main(["--input", str(folder), "--output", str(output)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(message.format(input=folder))
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not output.exists()


def test_an_output_that_is_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = write_hand_info(tmp_path / "11k", PHOTOS), tmp_path / "out"
    output.write_text("mine")
    assert analyze.main(["--input", str(folder), "--output", str(output)]) == 1
    expected = f"error: a file, not a folder: {output}. Choose another folder\n"
    assert capsys.readouterr().err == expected
    assert output.read_text() == "mine"


def test_no_photos_at_all_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_hand_info(tmp_path / "11k", [])
    assert analyze.main(["--input", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert f"error: no photos: {folder}/HandInfo.csv. Get" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- the real metadata

# Aspect -> images, people, min-max per person, images by gender, images and people by age group.
PUBLISHED_SPLIT: dict[str, tuple[Any, ...]] = {
    "dorsal_dr": (
        2004,
        143,
        "2-46",
        [1095, 909],
        [372, 878, 414, 147, 114, 79],
        [33, 57, 27, 12, 9, 5],
    ),
    "dorsal_dl": (
        1869,
        146,
        "2-52",
        [1023, 846],
        [328, 852, 362, 162, 87, 78],
        [31, 61, 26, 14, 9, 5],
    ),
    "palmar_pr": (
        1965,
        143,
        "4-71",
        [1017, 948],
        [371, 861, 418, 148, 95, 72],
        [33, 57, 28, 12, 8, 5],
    ),
    "palmar_pl": (
        2027,
        151,
        "2-56",
        [1078, 949],
        [381, 890, 401, 180, 111, 64],
        [32, 62, 28, 15, 9, 5],
    ),
}


@pytest.mark.real
def test_real_counts(real_full_info: Path) -> None:
    counts = analyze.count_all(read_hand_info(real_full_info))
    assert count_of(counts, "gender all all") == {"female": (7109, 128), "male": (3967, 61)}
    assert count_of(counts, "skin_color all all") == {
        "very fair": (330, 5),
        "fair": (3493, 60),
        "medium": (6495, 110),
        "dark": (758, 14),
    }
    ages = count_of(counts, "age all all")
    assert [ages[age][0] for age in ("20", "21", "22")] == [1935, 4930, 2434]
    assert (list(ages)[0], list(ages)[-1]) == ("18", "75")
    for question, images in (("accessories", 3211), ("nail_polish", 1067), ("irregularities", 164)):
        assert count_of(counts, f"{question} all all")["with"][0] == images
    for aspect, (images, people, spread, genders, *groups) in PUBLISHED_SPLIT.items():
        place = ("no_accessories", aspect)
        totals = analyze.select(counts, "images_per_person", *place).sum()
        assert totals.tolist() == [images, people]
        least, _, most = analyze.spread_per_person(counts, *place).split("-")
        assert f"{least}-{most}" == spread
        assert analyze.select(counts, "gender", *place)["images"].tolist() == genders
        by_age = analyze.select(counts, "age_group", *place)
        assert [by_age["images"].tolist(), by_age["people"].tolist()] == groups


@pytest.mark.real
def test_texts_of_real_figures_keep_apart(
    real_full_info: Path, drawn: dict[str, Figure], tmp_path: Path
) -> None:
    counts = analyze.count_all(read_hand_info(real_full_info))
    for question in analyze.QUESTIONS:
        analyze.plot_fractions(counts, tmp_path / f"{question}.png", question=question)
    analyze.plot_images_per_person(counts, tmp_path / "images_per_person.png")
    assert len(drawn) == len(FIGURES)
    for figure in drawn.values():
        assert_texts_keep_apart(figure)
