"""metrics_json.py: what stands in metrics.json, recomputed from the arrays by plain loops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from metrics_json.metrics_json import (
    BOOTSTRAP_SEED,
    Matched,
    left_out,
    measure,
    measure_matching,
    measure_task,
    open_set,
    plain,
)
from metrics_json.pairs import cosine_similarity, fnir_at_fpir
from sklearn.metrics import balanced_accuracy_score

from measures import metrics_json

N_PEOPLE, N_PHOTOS = 24, 160
AGES = np.array([19, 21, 22, 23, 27, 50])


def run_arrays(*, strangers: bool, seed: int = 5) -> dict[str, np.ndarray]:
    """Return the arrays of an evaluation: the model is often right, of strangers less so."""
    random = np.random.default_rng(seed)
    person = np.concatenate([np.arange(N_PEOPLE), random.integers(0, N_PEOPLE, N_PHOTOS)])
    n, gender, age = len(person), np.arange(N_PEOPLE) % 2, np.arange(N_PEOPLE) % 6
    true = {"identity": person, "gender": gender[person], "age": age[person]}
    arrays: dict[str, np.ndarray] = {}
    for task, n_classes in (("identity", N_PEOPLE), ("gender", 2), ("age", 6)):
        logits = random.normal(size=(n, n_classes)) + 2 * np.eye(n_classes)[true[task]]
        arrays[f"{task}_logits"] = logits.astype(np.float32)
        arrays[f"{task}_classes"] = np.array([f"{task}{i}" for i in range(n_classes)])
        arrays[f"{task}_true"] = np.full(n, -1) if task == "identity" and strangers else true[task]
        arrays[f"{task}_temperature"] = np.array(1.3)
        arrays[f"{task}_train_counts"] = np.arange(n_classes)
    arrays |= {"gender_of_identity": gender, "age_of_identity": age, "mean_ages": 1.0 * AGES}
    arrays["people"] = np.array([f"p{i:02d}" for i in person])
    arrays["age_years"] = AGES[true["age"]]
    arrays["frame_number"] = np.argsort(np.argsort(person, kind="stable")).astype(float)
    arrays["embedding"] = random.normal(size=(N_PEOPLE, 6))[person] + random.normal(size=(n, 6))
    arrays["slice_gender"] = np.array(["female", "male"])[true["gender"]]
    arrays["slice_skin_color"] = np.where(person < 4, "dark", "fair")
    if strangers:
        rows = [random.permutation(np.flatnonzero(person == i)) for i in range(N_PEOPLE)]
        arrays["galleries"] = np.array([[r[k % len(r)] for r in rows] for k in range(3)])
        other = np.repeat(np.arange(8), 6)
        arrays["calibration_embedding"] = random.normal(size=(8, 6))[other] + random.normal(
            size=(48, 6)
        )
        arrays["calibration_people"] = np.array([f"q{i}" for i in other])
        arrays["calibration_frame_number"] = np.arange(48.0)
        arrays["training_embedding"] = random.normal(size=(30, 6))
        arrays |= {
            f"training_{task}_true": np.arange(30) % n for task, n in (("gender", 2), ("age", 6))
        }
    return arrays


def test_slices_equal_the_measure_of_the_rows_alone() -> None:
    arrays = run_arrays(strangers=False)
    found = measure_task("age", arrays)["slices"]
    assert set(found) == {"gender", "skin_color"}
    predicted = arrays["age_logits"].argmax(axis=1)
    for grouping, sliced in found.items():
        groups = arrays[f"slice_{grouping}"]
        assert set(sliced["balanced_accuracy"]["groups"]) == set(groups)
        for group, part in sliced["balanced_accuracy"]["groups"].items():
            rows = groups == group
            expected = balanced_accuracy_score(arrays["age_true"][rows], predicted[rows])
            assert part["value"] == pytest.approx(expected)
            assert part["low"] <= part["value"] <= part["high"]
            assert part["n_photos"] == rows.sum()
            assert part["n_people"] == len(set(arrays["people"][rows]))
            assert part["few_people"] == (part["n_people"] < 10)
    assert found["skin_color"]["balanced_accuracy"]["gap"] is None  # 4 dark people are too few
    by_gender = found["gender"]["mae_years"]
    gap = by_gender["gap"]
    values = {group: part["value"] for group, part in by_gender["groups"].items()}
    assert gap["value"] == pytest.approx(abs(values["female"] - values["male"]))
    assert values[gap["highest"]] > values[gap["lowest"]]


def test_a_measure_that_its_slices_take_apart_is_left_out() -> None:
    found = measure_task("gender", run_arrays(strangers=False))["slices"]
    assert "roc_auc" not in found["gender"]
    assert "roc_auc" in found["skin_color"]


def test_the_distance_to_a_control_is_paired_over_people() -> None:
    found = measure_task("age", run_arrays(strangers=False))
    assert set(found["above_controls"]) == {"majority_class", "identity_lookup"}
    for name, differences in found["above_controls"].items():
        assert set(differences) == {"balanced_accuracy", "mae_years"}
        for measure_name, above in differences.items():
            difference = found[measure_name] - found["controls"][name][measure_name]
            assert above["value"] == pytest.approx(difference)
            assert above["low"] <= difference <= above["high"]
            assert above["more_than_chance"] == (above["low"] > 0 or above["high"] < 0)
    majority = found["above_controls"]["majority_class"]
    assert majority["balanced_accuracy"]["low"] > 0 > majority["mae_years"]["high"]


def test_strangers_are_looked_up_at_the_training_photo_that_is_most_alike() -> None:
    arrays = run_arrays(strangers=True)
    nearest = []
    for photo in arrays["embedding"]:
        cosines = [
            photo @ other / np.linalg.norm(photo) / np.linalg.norm(other)
            for other in arrays["training_embedding"]
        ]
        nearest.append(int(np.argmax(cosines)))
    for task in ("gender", "age"):
        found = measure_task(task, arrays)
        said = arrays[f"training_{task}_true"][nearest]
        expected = balanced_accuracy_score(arrays[f"{task}_true"], said)
        assert found["controls"]["nearest_embedding"]["balanced_accuracy"] == pytest.approx(
            expected
        )
        assert "nearest_embedding" in found["above_controls"]
    del arrays["training_embedding"]
    assert "nearest_embedding" not in measure_task("gender", arrays)["controls"]


def test_open_set_is_the_mean_over_halves_of_the_galleries() -> None:
    arrays = run_arrays(strangers=True)
    people, galleries = arrays["people"], arrays["galleries"]
    similarity = cosine_similarity(arrays["embedding"], arrays["embedding"])
    matched = Matched(similarity, people, np.eye(len(people), dtype=bool))
    found = open_set(matched, galleries)
    random, expected = np.random.default_rng(BOOTSTRAP_SEED), []
    for gallery in galleries:
        enrolled = random.permutation(gallery)[: N_PEOPLE // 2]
        query = np.array([row for row in range(len(people)) if row not in gallery])
        part = similarity[np.ix_(query, enrolled)]
        expected.append(fnir_at_fpir(part, people[query], people[enrolled], 0.1))
    assert found["fnir_at_fpir_0.1"] == pytest.approx(np.mean(expected))
    assert 0 < found["fnir_at_fpir_0.1"] < 1
    assert (found["n_gallery_people"], found["n_outside_people"], found["n_draws"]) == (12, 12, 3)
    assert math.isnan(found["fnir_at_fpir_0.01"])  # 1 % of fewer than 100 searches is none


@pytest.mark.parametrize("gap", [0, 2])
def test_pairs_left_out(gap: int) -> None:
    people, frames = np.array(["a", "a", "b", "a"]), np.array([1.0, 3.0, 4.0, 6.0])
    expected = [
        [i == j or (gap > 0 and people[i] == people[j] and abs(frames[i] - frames[j]) <= gap)
         for j in range(4)]
        for i in range(4)
    ]  # fmt: skip
    assert left_out(people, frames, gap).tolist() == expected


def test_likelihood_ratios_are_calibrated_on_other_people() -> None:
    arrays = run_arrays(strangers=True)
    found = measure_matching(arrays)
    for kind in ("all_pairs", "beyond_2_frames"):
        ratios = found[kind]["likelihood_ratio"]
        assert ratios["calibration_people"] == 8
        assert 0 <= ratios["cllr_min"] <= ratios["cllr"]
        assert ratios["intervals"]["cllr"]["low"] <= ratios["cllr"]
        assert ratios["cllr"] <= ratios["intervals"]["cllr"]["high"]
    whole = found["all_pairs"]["likelihood_ratio"]
    units = arrays["embedding"] / np.linalg.norm(arrays["embedding"], axis=1, keepdims=True)
    people, costs = arrays["people"], {True: [], False: []}  # type: ignore[var-annotated]
    for i in range(len(people)):
        for j in range(i):
            ratio = whole["slope"] * (units[i] @ units[j]) + whole["intercept"]
            costs[people[i] == people[j]].append(ratio)
    genuine, impostor = np.array(costs[True]), np.array(costs[False])
    expected = (np.log2(1 + np.exp(-genuine)).mean() + np.log2(1 + np.exp(impostor)).mean()) / 2
    assert whole["cllr"] == pytest.approx(expected)
    assert whole["misleading_genuine"] == pytest.approx((genuine < 0).mean())
    assert whole["misleading_impostor"] == pytest.approx((impostor > 0).mean())
    n_calibration = 48 * 47 // 2
    assert whole["calibration_pairs"] == n_calibration

    one_person = {**arrays, "calibration_people": np.full(48, "q0")}
    assert measure_matching(one_person)["all_pairs"]["likelihood_ratio"] is None
    del arrays["calibration_embedding"]
    assert measure_matching(arrays)["all_pairs"]["likelihood_ratio"] is None


def leaves(nested: Mapping[str, Any]) -> list[Any]:
    """Return the values of nested mappings."""
    return [
        leaf
        for value in nested.values()
        for leaf in (leaves(value) if isinstance(value, Mapping) else [value])
    ]


@pytest.mark.parametrize("strangers", [False, True])
def test_every_value_is_plain_json(strangers: bool) -> None:
    found = plain(
        measure(run_arrays(strangers=strangers), ("identity", "age"), strangers=strangers)
    )
    assert set(found) == {"identity", "age"}
    assert ("matching" if strangers else "verification") in found["identity"]
    for leaf in leaves(found):
        assert leaf is None or type(leaf) in (bool, int, float, str)
        assert not (isinstance(leaf, float) and math.isnan(leaf))


def test_too_many_photos_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_json, "MOST_MATCHED", N_PEOPLE + N_PHOTOS - 1)
    found = measure(run_arrays(strangers=True), ("identity",), strangers=True)
    assert found["identity"]["matching"] is None


def test_without_frame_numbers_neighbours_cannot_be_left_out() -> None:
    arrays = run_arrays(strangers=True)
    arrays["frame_number"][3] = np.nan
    assert measure_matching(arrays)["beyond_2_frames"] is None
