"""compare.py: averages by hand, intervals by brute force, the table, differences, the figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

import compare
from compare import (
    Summary,
    find_row,
    interval_text,
    plot_comparison,
    rows_of,
    summarise,
    table_line,
    table_text,
)
from data.splits import PROTOCOLS
from dataset_11k import AGE_GROUPS
from measures import across_runs
from measures.across_runs import (
    Cell,
    Result,
    Row,
    average,
    compare_rows,
    differences_table,
    headline_numbers,
    interval,
)
from measures.bootstrap import N_DRAWS, Interval, draw_people
from pages.wording import CONTROLS
from utils import UserError

GENDER = ("gender", "balanced_accuracy")


def random_arrays(seed: int, *, people: str = "p", strangers: bool = False) -> dict[str, Any]:
    """Return the predictions.npz of a model that guesses: 12 people, 6 photos each."""
    draw = np.random.default_rng(seed)
    who = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 6))
    n_photos = len(who)
    arrays: dict[str, Any] = {
        "people": np.array([f"{people}{number:02}" for number in who]),
        "age_years": 18 + who,
        "frame_number": np.arange(n_photos) * 10.0,
        "embedding": draw.normal(size=(n_photos, 5)) + np.eye(12, 5)[who],
        "mean_ages": np.array([19.0, 21, 22, 23, 27, 40]),
        "gender_true": who % 2,
        "age_true": who % len(AGE_GROUPS),
        "identity_true": np.full(n_photos, -1) if strangers else who,
    }
    for task, n_classes in (("identity", 12), ("gender", 2), ("age", 6)):
        right = np.eye(n_classes)[arrays[f"{task}_true"]]
        arrays[f"{task}_logits"] = draw.normal(size=(n_photos, n_classes)) + right
        arrays[f"{task}_classes"] = np.array([str(i) for i in range(n_classes)])
        arrays[f"{task}_temperature"] = np.array(1.5)
    if strangers:
        rows = [np.flatnonzero(who == person) for person in range(12)]
        arrays["galleries"] = np.array([[draw.choice(r) for r in rows] for _ in range(3)])
    return arrays


def metrics_of(n_images: int, numbers: dict[str, Any] | None = None) -> dict[str, Any]:
    said = {"majority_class": {"balanced_accuracy": 0.5}, **(numbers or {})}
    gender = {
        "balanced_accuracy": 0.7,
        "intervals": {"balanced_accuracy": {"low": 0.6, "high": 0.8}},
        "controls": said,
    }
    tasks = {"identity": None, "gender": gender, "age": None}
    about = {"checkpoint": "c", "epoch": 1, "split": "test", "n_people": 12}
    return {**about, "n_images": n_images, "tasks": tasks}


def make_result(
    folder: Path, cell: Cell, arrays: dict[str, Any], numbers: dict[str, Any] | None = None
) -> Result:
    folder = folder / cell.name
    folder.mkdir()
    np.savez(folder / "predictions.npz", **arrays)
    return Result(cell, folder, metrics_of(len(arrays["people"]), numbers))


@pytest.fixture
def folds_and_seeds(tmp_path: Path) -> tuple[Result, ...]:
    """Two folds of other people, two seeds of the first and one of the second."""
    cells = [Cell("dorsal_dr", "subject-disjoint", "net", *key) for key in ((0, 1), (0, 2), (1, 1))]
    return tuple(
        make_result(
            tmp_path,
            cell,
            random_arrays(
                10 * (cell.fold or 0) + cell.seed, people=f"f{cell.fold}", strangers=True
            ),
            {"identity_lookup": {"balanced_accuracy": 0.1 * (1 + i)}},
        )
        for i, cell in enumerate(cells)
    )


def score(result: Result, weights: np.ndarray | None = None) -> float:
    """Return the balanced accuracy of gender; `weights` of its photos."""
    true = result.arrays["gender_true"]
    right = result.arrays["gender_logits"].argmax(axis=1) == true
    counted = np.ones(len(true)) if weights is None else weights
    recalls = [
        counted[right & (true == c)].sum() / counted[true == c].sum()
        for c in (0, 1)
        if counted[true == c].any()
    ]
    return float(np.mean(recalls))


def test_averages_are_means_of_each_models_own_score(folds_and_seeds: tuple[Result, ...]) -> None:
    scores = [score(result) for result in folds_and_seeds]
    expected = ((scores[0] + scores[1]) / 2 + scores[2]) / 2
    assert average(folds_and_seeds, GENDER).value == pytest.approx(expected, abs=1e-12)
    true = np.concatenate([r.arrays["gender_true"] for r in folds_and_seeds])
    logits = np.concatenate([r.arrays["gender_logits"] for r in folds_and_seeds])
    pooled = balanced_accuracy_score(true, logits.argmax(axis=1))
    assert pooled != pytest.approx(expected, abs=1e-3)

    summary = summarise(folds_and_seeds[0].cell.row, folds_and_seeds, n_folds=3)
    assert summary.controls[GENDER]["identity_lookup"] == pytest.approx((0.15 + 0.3) / 2)
    assert summary.controls[GENDER]["majority_class"] == 0.5
    assert summary.n_images == 2 * 72
    assert summary.made_of == "**2 of 3 folds**, seeds 1 2, **3 of 4 runs**"
    assert ("identity", "balanced_accuracy") not in summary.numbers


def test_the_interval_of_an_average_is_that_of_people_drawn_over_all_folds(
    folds_and_seeds: tuple[Result, ...],
) -> None:
    everybody = np.unique(np.concatenate([r.arrays["people"] for r in folds_and_seeds]))
    assert len(everybody) == 24
    draws = []
    for weights in draw_people(24, N_DRAWS, seed=0):
        by_photo = [
            weights[np.searchsorted(everybody, r.arrays["people"])] for r in folds_and_seeds
        ]
        pairs = zip(folds_and_seeds, by_photo, strict=True)
        scores = [score(result, own) for result, own in pairs]
        draws.append(((scores[0] + scores[1]) / 2 + scores[2]) / 2)
    found = interval(folds_and_seeds, GENDER)
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-9)
    assert found.n_people == 24


def test_rank_1_of_strangers_by_brute_force(folds_and_seeds: tuple[Result, ...]) -> None:
    arrays = folds_and_seeds[0].arrays
    unit = arrays["embedding"] / np.linalg.norm(arrays["embedding"], axis=1, keepdims=True)
    hits = []
    for gallery in arrays["galleries"]:
        for query in sorted(set(range(72)) - set(gallery)):
            best = gallery[np.argmax(unit[gallery] @ unit[query])]
            hits.append(arrays["people"][best] == arrays["people"][query])
    found = folds_and_seeds[0].measures["identity", "rank_1"]
    assert found.value == pytest.approx(np.mean(hits), abs=1e-12)


def test_differences_are_paired_over_the_folds_that_both_have(
    folds_and_seeds: tuple[Result, ...], tmp_path: Path
) -> None:
    better = random_arrays(99, people="f0", strangers=True)
    better["gender_logits"] = 9 * np.eye(2)[better["gender_true"]]
    cell = Cell("dorsal_dr", "subject-disjoint", "better", 0, 1)
    other = make_result(tmp_path, cell, better)
    alone = make_result(tmp_path, cell._replace(protocol="paper"), random_arrays(1))
    table = differences_table(rows_of([*folds_and_seeds, other, alone]))
    assert set(zip(table["first"], table["second"], strict=True)) == {("net", "better")}
    assert set(table["folds"]) == {"0"}
    line = table[(table["task"] == "gender") & (table["measure"] == GENDER[1])].iloc[0]
    expected = (score(folds_and_seeds[0]) + score(folds_and_seeds[1])) / 2 - 1
    assert line["difference"] == pytest.approx(expected)
    assert line["low"] < expected < line["high"] < 0
    assert line["more_than_chance"]
    assert line["n_people"] == 12

    same = compare_rows(folds_and_seeds[:1], folds_and_seeds[:1])[GENDER]
    assert (same.value, same.low, same.high, same.more_than_chance) == (0, 0, 0, False)

    better["frame_number"] = better["frame_number"] + 1  # another draw of the split
    moved = make_result(tmp_path, cell._replace(backbone="moved"), better)
    assert differences_table(rows_of([folds_and_seeds[0], moved])).empty


def test_rows_and_their_names(folds_and_seeds: tuple[Result, ...], tmp_path: Path) -> None:
    assert find_row("dorsal_dr-subject-disjoint-net", folds_and_seeds) == folds_and_seeds
    assert find_row("dorsal_dr-subject-disjoint-net-seed_1", folds_and_seeds) == (
        folds_and_seeds[0],
        folds_and_seeds[2],
    )
    fold = find_row("dorsal_dr-subject-disjoint-fold_0-net", folds_and_seeds)
    assert fold == folds_and_seeds[:2]
    with pytest.raises(UserError, match="no such row; there are dorsal_dr-subject-disjoint-net"):
        find_row("net", folds_and_seeds)
    cells = [Cell("a", "paper", "x", None, 1), Cell("b", "paper", "x", None, 1)]
    cells.append(Cell("a", "paper", "y", None, 1))  # added, thus last
    rows = rows_of([Result(cell, tmp_path, {}) for cell in cells])
    assert [row.aspect + row.backbone for row in rows] == ["ax", "ay", "bx"]


def test_headline_numbers_name_what_there_is() -> None:
    pairs = {"eer": 0.1, "intervals": {"eer": {"low": 0.0, "high": None}}}
    ranks = {"rank_1": 0.9, "intervals": {"rank_1": {"low": 0.8, "high": 1.0}}}
    matching = {"all_pairs": {**pairs, **ranks}, "beyond_2_frames": pairs}
    matching["controls"] = {"chance": {"rank_1": 0.25}}
    identity = {
        "balanced_accuracy": None,
        "intervals": {"balanced_accuracy": {"low": None, "high": None}},
        "controls": {},
        "matching": {**matching, "all_pairs": {**ranks}},
    }
    assert headline_numbers({"identity": identity, "gender": None}) == {
        "identity_rank_1": 0.9,
        "identity_rank_1_low": 0.8,
        "identity_rank_1_high": 1.0,
        "identity_rank_1_chance": 0.25,
        "identity_eer_beyond_2_frames": 0.1,
        "identity_eer_beyond_2_frames_low": 0.0,
        "identity_eer_beyond_2_frames_chance": 0.5,
    }
    without = {**identity, "matching": {"all_pairs": pairs, "beyond_2_frames": None}}
    assert set(headline_numbers({"identity": without})) == {
        "identity_eer",
        "identity_eer_low",
        "identity_eer_chance",
    }


# ----------------------------------------------------------------------------- table and figure


def made_up(place: int = 0, **values: Any) -> Summary:
    """Return a row that nobody measured."""
    strangers = place % 2 == 1
    protocol = "subject-disjoint" if strangers else "paper"
    row = Row(f"aspect_{place // 4}", protocol, f"backbone_{place}_of_some_length")
    middle = 0.4 + 0.018 * place
    number = Interval(middle, middle - 0.08, middle + 0.05, 1000, 140, 0.0, 0)
    identity = ("identity", "rank_1" if strangers else "balanced_accuracy")
    keys = [identity, GENDER, ("gender", "roc_auc"), ("age", "balanced_accuracy")]
    numbers = dict.fromkeys([*keys, ("age", "mae_years")], number)
    controls = {key: {"majority_class": 0.5, "identity_lookup": 0.62} for key in numbers}
    controls[identity] = {"chance": 0.04} if strangers else {"majority_class": 0.01}
    facts: dict[str, Any] = {
        **{"row": row, "folds": (0, 1, 2, 3, 4) if strangers else (), "n_folds": 5},
        **{"seeds": (42,), "n_runs": 5 if strangers else 1, "n_images": 1002},
        **{"numbers": numbers, "controls": controls},
    }
    return Summary(**{**facts, **values})


@pytest.mark.parametrize(
    ("place", "values", "expected"),
    [
        (0, {}, "seed 42"),
        (0, {"seeds": (1, 2), "n_runs": 2}, "seeds 1 2"),
        (1, {}, "5 folds, seed 42"),
        (1, {"folds": (0, 2, 3), "n_runs": 3}, "**3 of 5 folds**, seed 42"),
        (1, {"seeds": (1, 2), "n_runs": 10}, "5 folds, seeds 1 2"),
        (1, {"seeds": (1, 2), "n_runs": 9}, "5 folds, seeds 1 2, **9 of 10 runs**"),
    ],
)
def test_what_a_row_is_averaged_over(place: int, values: dict[str, Any], expected: str) -> None:
    assert made_up(place, **values).made_of == expected


def test_a_line_of_the_table() -> None:
    assert table_line(made_up()) == (
        "| `backbone_0_of_some_length` | `aspect_0` | `paper` | seed 42 | 1002, 140"
        " | .400 (.320-.450) | .400 (.320-.450) | .500 / .620 | .400 (.320-.450)"
        " | .400 (.320-.450) | .500 / .620 | 0.40 (0.32-0.45) |"
    )
    line = table_line(made_up(1, controls={}))
    assert "| rank-1 .418 (.338-.468) |" in line
    assert "| - / - |" in line
    known = dict.fromkeys(("majority_class", "identity_lookup", "nearest_embedding"), 0.5)
    assert "| .500 / .500 / .500 |" in table_line(made_up(1, controls={GENDER: known}))
    assert interval_text(made_up(numbers={}), GENDER) == "-"
    whole = Interval(1.0, float("nan"), float("nan"), 3, 1, 0.0, 0)
    assert interval_text(made_up(numbers={GENDER: whole}), GENDER) == "1.000 (---)"


def test_the_table_says_what_was_trained_how_and_what_is_missing() -> None:
    summaries = [made_up(0), made_up(1)]
    recipes = {summary.row: "--N_epochs 3" for summary in summaries}
    none = pd.DataFrame(columns=["more_than_chance"])
    text = table_text(summaries, recipes, none, 0)
    assert "Trained with `--N_epochs 3`." in text
    assert "Pairs of" not in text
    assert "missing" not in text
    n_cells = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert n_cells == {13}
    recipes[summaries[1].row] = ""
    some = pd.DataFrame({"more_than_chance": [True, False, False]})
    text = table_text(summaries, recipes, some, 4)
    assert "Trained (aspect_0-subject-disjoint-backbone_1_of_some_length) with the defaults" in text
    assert "1 of 3 differences are more than chance" in text
    assert "**Not finished: 4 runs are missing.**" in text


@pytest.mark.parametrize("n_rows", [2, 30])
def test_the_figure_has_room_for_every_row(n_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "compare.png"
    plot_comparison([made_up(place) for place in range(n_rows)], path)
    with Image.open(path) as picture:
        assert picture.width == 1650
        assert picture.height == 150 * (1.9 + 0.3 * n_rows)


def test_the_figure_of_every_protocol_and_control_is_not_cut_off(tmp_path: Path) -> None:
    rows = [
        replace(made_up(i), row=Row("dorsal_dr", protocol, "net"))
        for i, protocol in enumerate(PROTOCOLS)
    ]
    controls = dict.fromkeys(rows[-1].numbers, dict.fromkeys(CONTROLS, 0.5))
    rows[-1] = replace(rows[-1], controls=controls)
    plot_comparison(rows, tmp_path / "compare.png")
    with Image.open(tmp_path / "compare.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255


# ----------------------------------------------------------------------------- results.csv


def test_results_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results.csv not found; give the --output of a"):
        compare.read_results(tmp_path)
    path = tmp_path / "results.csv"
    head = "aspect,protocol,backbone,fold,seed,evaluation\n"
    for text, message in (
        ("", "No columns"),
        ("backbone,aspect\n", "it lacks columns of aspect, protocol, "),
        (f"{head}a,paper,net,,1,x\na,paper,ne", "line 3 is not complete"),
        (f"{head}a,paper,net,,x,x\n", "invalid literal"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{message}.*move it away, and run the comparison"):
            compare.read_results(tmp_path)
    path.write_text("aspect,protocol,backbone,fold,seed,evaluation\na,paper,net,,1,gone\n")
    with pytest.raises(UserError, match="gone is no finished evaluation"):
        compare.read_results(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", None])
def test_an_unfinished_evaluation_is_none(damage: str | None, tmp_path: Path) -> None:
    cell = Cell("dorsal_dr", "paper", "net", None, 1)
    folder = make_result(tmp_path, cell, random_arrays(1)).folder
    assert across_runs.read_evaluation(cell, folder) is None
    (folder / "metrics.json").write_text(json.dumps(metrics_of(72)))
    assert across_runs.read_evaluation(cell, folder) is not None
    if damage is None:
        (folder / "predictions.npz").write_bytes(b"PK half of it")
    else:
        (folder / "metrics.json").write_text(damage)
    assert across_runs.read_evaluation(cell, folder) is None
