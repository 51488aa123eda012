"""metrics_json.py: former values, a new row of the tables, and blocks recomputed by plain loops."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from dataset_11k import TASKS, Task
from measures import metrics_json, pairs
from measures.classes import balanced_accuracy
from measures.intervals import interval_of, people_mean, t_quantile
from measures.likelihood_ratio import ScoreCalibration, fit_calibration
from measures.metrics_json import (
    class_predictions,
    compute_metrics,
    compute_pairs,
    headline_measures,
    pair_scores,
    people_per_class,
    to_json,
)
from measures.pairs import OPEN_SET_SEED, fnir_at_fpir
from measures.registry import MEASURES, Measure

FIXTURES = Path(__file__).parent / "fixtures"

# The values of cmc are top_1, top_5 and top_10; intervals were of a bootstrap; likelihood ratios
# were calibrated on val; the gallery has 6 people.
REMOVED = {"cmc", "low", "high", "absent_classes", "undefined_draws", "more_than_chance"}

# 30 people are too few pairs of people
REMOVED |= {
    "likelihood_ratio",
    "rank_10",
    "fnir_at_fpir_0.1",
    "fnmr_at_fmr_0.01",
    "fnmr_at_fmr_0.001",
}

Arrays = dict[str, np.ndarray]


def read_fixture(name: str) -> Arrays:
    """Return arrays of drawn hands: 30 people of `paper`, 6 unseen ones of `disjoint`."""
    with np.load(FIXTURES / f"{name}.npz") as stored:
        return dict(stored)


@pytest.fixture
def paper() -> Arrays:
    return read_fixture("paper")


@pytest.fixture
def disjoint() -> Arrays:
    return read_fixture("disjoint")


# mae_years was of the expected age, identity_lookup of one person; chance is beside its pairs.
REMOVED |= {"mae_years", "identity_lookup", "chance"}

RENAMED = {"majority_class": "constant", "nearest_neighbour": "embedding_nearest"}


def leaves(nested: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


# ----------------------------------------------------------------------------- the whole


@pytest.mark.parametrize(("name", "unseen"), [("paper", False), ("disjoint", True)])
def test_values_are_those_of_the_former_code(name: str, unseen: bool) -> None:
    former = json.loads((FIXTURES / f"{name}.json").read_text())
    found = to_json(compute_metrics(read_fixture(name), tuple(TASKS), unseen=unseen))
    json.dumps(found, allow_nan=False)  # plain JSON types
    values = dict(leaves(found))
    for path, value in leaves(former):
        path = tuple(RENAMED.get(key, key) for key in path)
        exact = path[:3] == ("identity", "differences_to_baselines", "constant")
        if not (exact or REMOVED & set(path) or {"roc_auc", "embedding_nearest"} <= set(path)):
            assert values[path] == pytest.approx(value, abs=1e-9), path
    assert values["age", "mae_years_of_expectation"] == pytest.approx(former["age"]["mae_years"])
    ranks = former["identity"]["cmc"]
    assert {rank: found["identity"][f"top_{rank}"] for rank in ranks} == pytest.approx(ranks)


def test_a_new_row_is_a_headline_measure_everywhere(
    disjoint: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    def correct(p: Any) -> Any:
        return people_mean((p.true == p.predicted).astype(float), p.people)

    monkeypatch.setitem(
        MEASURES, "hits", Measure("hits", "hits", "Correct photos.", correct, headline=True)
    )
    monkeypatch.setitem(
        MEASURES,
        "fifth",
        Measure(
            "fifth",
            "rank-5",
            "Found at rank 5.",
            lambda s: s.rank_rate(5),
            needs="galleries",
            headline=True,
            chance=lambda s: 5 / s.galleries.shape[1],
        ),
    )
    found = compute_metrics(disjoint, tuple(TASKS), unseen=True)
    age = found["age"]
    assert age["hits"] == pytest.approx(age["accuracy"])
    assert age["intervals"]["hits"]["low"] < age["hits"] < age["intervals"]["hits"]["high"]
    assert set(age["baselines"]) == {"constant", "identity_lookup", "embedding_nearest"}
    for name, baseline in age["baselines"].items():
        assert baseline["hits"] == pytest.approx(baseline["accuracy"])
        difference = age["differences_to_baselines"][name]["hits"]
        assert difference["value"] == pytest.approx(age["hits"] - baseline["hits"])
        assert difference["low"] <= difference["value"] <= difference["high"]
    assert set(age["groups"]["gender"]["hits"]["groups"]) == {"female", "male"}
    matching = found["identity"]["matching"]
    assert matching["all_pairs"]["baselines"]["chance"]["fifth"] == pytest.approx(5 / 6)
    assert matching["all_pairs"]["fifth"] == 1
    assert np.isnan(matching["all_pairs"]["rank_10"])
    assert "fifth" in matching["all_pairs"]["intervals"]
    assert "fifth" in matching["all_pairs"]["groups"]["skin_color"]
    keys = headline_measures(disjoint, tuple(TASKS), unseen=True)
    assert {("gender", "hits"), ("age", "hits"), ("identity", "fifth")} <= keys.keys()


def test_a_headline_needs_weights_of_people(paper: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Measure("n", "n", "Photos.", lambda p: len(p.true), headline=True)
    monkeypatch.setitem(MEASURES, "n", row)
    with pytest.raises(TypeError, match="headline n must return a PeopleMeasure"):
        compute_metrics(paper, ("age",), unseen=False)


@pytest.mark.parametrize(("name", "unseen"), [("paper", False), ("disjoint", True)])
def test_headline_measures_have_the_values_of_metrics_json(name: str, unseen: bool) -> None:
    arrays = read_fixture(name)
    found = headline_measures(arrays, tuple(TASKS), unseen=unseen)
    metrics = compute_metrics(arrays, tuple(TASKS), unseen=unseen)
    identity = {"rank_1", "mAP", "eer"} if unseen else {"balanced_accuracy"}
    assert {key for task, key in found if task == "identity"} == identity
    for (task, key), measure in found.items():
        block = metrics[task]["matching"]["all_pairs"] if key in identity and unseen else None
        block = block if task == "identity" and block else metrics[task]
        assert measure.value == pytest.approx(block[key])


def test_a_fourth_task_gets_the_measures_of_its_classes(
    disjoint: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "ring", Task("accessories", "ring", ("none", "some")))
    random = np.random.default_rng(0)
    n = len(disjoint["people"])
    disjoint["ring_true"] = random.integers(-1, 2, n)
    disjoint["ring_logits"] = random.normal(size=(n, 2)).astype(np.float32)
    disjoint["ring_temperature"] = np.array(2.0)
    disjoint["ring_train_counts"] = np.array([5, 9])
    found = compute_metrics(disjoint, ("ring",), unseen=True)
    assert set(found) == {"ring"}
    known = disjoint["ring_true"] >= 0
    predicted = disjoint["ring_logits"].argmax(axis=1)
    expected = balanced_accuracy_score(disjoint["ring_true"][known], predicted[known])
    assert found["ring"]["n_images"] == known.sum() < n
    assert found["ring"]["balanced_accuracy"] == pytest.approx(expected)
    assert 0 < found["ring"]["roc_auc"] < 1
    assert found["ring"]["baselines"]["constant"]["balanced_accuracy"] == 0.5
    assert set(found["ring"]["baselines"]) == {"constant"}
    assert "mae_years" not in found["ring"]


def test_without_an_identity_head_nothing_is_looked_up(disjoint: Arrays) -> None:
    arrays = {key: value for key, value in disjoint.items() if "identity" not in key}
    found = compute_metrics(arrays, ("gender",), unseen=True)
    assert set(found["gender"]["baselines"]) == {"constant", "embedding_nearest"}
    without = {key: value for key, value in arrays.items() if not key.endswith("_counts")}
    assert compute_metrics(without, ("gender",), unseen=True)["gender"]["baselines"] == {}


# ----------------------------------------------------------------------------- classes


def test_groups_are_measured_on_their_photos_alone(paper: Arrays) -> None:
    paper["group_hand"] = np.where(np.arange(len(paper["people"])) % 2, "left", "right")
    found = compute_metrics(paper, ("age", "gender"), unseen=False)
    groups = found["age"]["groups"]
    assert set(groups) == {"gender", "age", "skin_color", "accessories", "hand"}
    predicted = paper["age_logits"].argmax(axis=1)
    for grouping in groups:
        labels = paper[f"group_{grouping}"]
        by_group = groups[grouping]["balanced_accuracy"]["groups"]
        assert set(by_group) == set(labels)
        for group, part in by_group.items():
            rows = labels == group
            expected = balanced_accuracy(paper["age_true"][rows], predicted[rows])
            assert part["value"] == pytest.approx(expected)
            assert part["n_photos"] == rows.sum()
            assert part["n_people"] == len(set(paper["people"][rows]))
            assert part["few_people"] == (part["n_people"] < 10)
    gap = groups["hand"]["mae_years"]["gap"]
    values = {key: part["value"] for key, part in groups["hand"]["mae_years"]["groups"].items()}
    assert gap["value"] == pytest.approx(values[gap["highest"]] - values[gap["lowest"]])
    assert gap["value"] > 0
    assert "roc_auc" not in found["gender"]["groups"]["gender"]  # a group has one class only
    assert "roc_auc" in found["gender"]["groups"]["hand"]


def test_baselines_predict_what_they_say(disjoint: Arrays) -> None:
    disjoint["gender_of_identity"][:] = -1
    disjoint["gender_train_counts"][:] = 7  # a tie
    disjoint["training_gender_true"][::3] = -1
    units = [
        embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        for embedding in (disjoint["embedding"], disjoint["training_embedding"])
    ]
    labels = disjoint["training_gender_true"]
    nearest = []
    for photo in units[0]:
        similarity = [u @ photo if y >= 0 else -2 for u, y in zip(units[1], labels, strict=True)]
        nearest.append(labels[int(np.argmax(similarity))])
    expected = balanced_accuracy_score(disjoint["gender_true"], nearest)
    found = compute_metrics(disjoint, ("gender", "identity"), unseen=True)
    baselines = found["gender"]["baselines"]
    assert baselines["embedding_nearest"]["balanced_accuracy"] == pytest.approx(expected)
    assert baselines["identity_lookup"] == baselines["constant"]
    first = (disjoint["gender_true"] == 0).mean()
    assert baselines["constant"]["accuracy"] == pytest.approx(first)
    assert baselines["constant"]["roc_auc"] == 0.5
    assert set(found["identity"]["baselines"]) == {"constant"}


def test_constant_of_identity_is_exact_without_the_most_frequent_person(paper: Arrays) -> None:
    first = paper["identity_true"] == 0
    paper["identity_true"][first] = -1
    paper["identity_train_counts"][0] = 99
    found = compute_metrics(paper, ("identity",), unseen=False)["identity"]
    n_people = len(set(paper["people"][~first]))
    assert found["baselines"]["constant"]["balanced_accuracy"] == 1 / n_people
    assert found["differences_to_baselines"]["constant"] == {}


def test_predictions_are_those_of_known_classes(paper: Arrays) -> None:
    paper["age_true"][::2] = -1
    found = class_predictions(paper, "age")
    assert len(found.true) == len(found.logits) == len(found.people) == len(found.ages) == 79
    assert np.array_equal(found.ages, paper["age_years"][1::2])
    assert not found.classes_are_people
    assert class_predictions(paper, "identity").classes_are_people


def test_people_of_classes_are_counted_where_a_class_has_few(paper: Arrays) -> None:
    old = 9  # people; the other class has 12
    person = np.repeat([f"p{i:02}" for i in range(old + 12)], 4)
    true = (np.arange(len(person)) // 4 >= old).astype(np.int64)
    right = np.ones(len(person), dtype=bool)
    right[:2] = right[4:7] = right[40:44] = False  # half right, one of four right, none right
    predicted = np.where(right, true, 1 - true)
    found = class_predictions(paper, "gender")
    found = replace(found, true=true, people=person, logits=np.eye(2)[predicted])
    assert people_per_class(found, ["old", "young"]) == {
        "old": {"n_people": 9, "n_mostly_right": 7},
        "young": {"n_people": 12, "n_mostly_right": 11},
    }
    enough = replace(found, people=np.arange(len(person)).astype(str))
    assert people_per_class(enough, ["old", "young"]) is None
    assert people_per_class(found, None) is None


# ----------------------------------------------------------------------------- pairs


def test_open_set_is_the_mean_over_halves_of_the_galleries(
    disjoint: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).standard_normal(disjoint["embedding"].shape)
    scores = pair_scores({**disjoint, "embedding": disjoint["embedding"] + 2 * noise}, 0)
    random, expected = np.random.default_rng(OPEN_SET_SEED), []
    people, galleries = disjoint["people"], disjoint["galleries"]
    for gallery in galleries:
        enrolled = random.permutation(gallery)[:3]
        query = np.array([row for row in range(len(people)) if row not in gallery])
        part = scores.similarity[np.ix_(query, enrolled)]
        expected.append(fnir_at_fpir(part, people[query], people[enrolled], 0.3))
    monkeypatch.setattr(pairs, "MIN_FALSE_MATCHES", 0.5)
    measure = scores.open_set_fnir(0.3)
    assert measure.value == pytest.approx(np.mean(expected))
    assert measure.shares.sum() == pytest.approx(1)
    for place, person in enumerate(measure.people):
        random, expected = np.random.default_rng(OPEN_SET_SEED), []
        for gallery in disjoint["galleries"]:
            enrolled = random.permutation(gallery)[: len(gallery) // 2]
            query = np.setdiff1d(np.arange(len(people)), gallery)
            enrolled, query = (rows[people[rows] != person] for rows in (enrolled, query))
            part = scores.similarity[np.ix_(query, enrolled)]
            expected.append(fnir_at_fpir(part, people[query], people[enrolled], 0.3))
        assert measure.leave_one_out[place] == pytest.approx(np.nanmean(expected), nan_ok=True)
    assert measure.leave_one_out.std() > 0
    monkeypatch.setattr(pairs, "MIN_FALSE_MATCHES", scores.n_outside * 0.3 + 0.1)
    assert math.isnan(scores.open_set_fnir(0.3).value)  # one error rests on too few people


def noisy(n_people: int, n_photos: int, seed: int) -> Arrays:
    """Return arrays of unseen people whose genuine and impostor scores overlap."""
    random, person = np.random.default_rng(seed), np.repeat(np.arange(n_people), n_photos)
    rows = np.arange(len(person))
    return {
        "embedding": random.normal(size=(n_people, 6))[person] + random.normal(size=(len(rows), 6)),
        "people": np.array([f"{seed}-{i:02}" for i in person]),
        "frame_number": rows * 10.0,
        "galleries": np.stack([np.flatnonzero(rows % n_photos == k) for k in (0, 1)]),
    }


def similarity_of(arrays: Arrays, one: np.int64, other: np.int64) -> float:
    first, second = arrays["embedding"][[one, other]]
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def exceeded_by(scores: list[float], rate: float) -> float:
    """Return the lowest score that at most `rate` of the scores exceed."""
    return min(x for x in scores if sum(y > x for y in scores) <= rate * len(scores))


def brute_pairs(arrays: Arrays, without: str = "") -> tuple[list[float], list[float]]:
    """Return the scores of impostor and of genuine pairs."""
    found: tuple[list[float], list[float]] = ([], [])
    people = arrays["people"]
    for i, j in itertools.combinations(np.flatnonzero(people != without), 2):
        found[people[i] == people[j]].append(similarity_of(arrays, i, j))
    return found


def brute_searches(arrays: Arrays, without: str = "") -> list[list[tuple[float | None, float]]]:
    """Return, of each gallery, the searches' scores: mate (None: not enrolled), best of others."""
    random, people = np.random.default_rng(OPEN_SET_SEED), arrays["people"]
    found: list[list[tuple[float | None, float]]] = []
    for gallery in arrays["galleries"]:
        enrolled = random.permutation(gallery)[: len(gallery) // 2]
        found.append([])
        for query in set(np.flatnonzero(people != without)) - set(gallery):
            scores = {people[i]: similarity_of(arrays, query, i) for i in enrolled}
            scores.pop(without, None)
            mate = scores.pop(people[query], None)
            found[-1].append((mate, max(scores.values())))
    return found


def test_thresholds_of_val_are_applied_to_the_evaluated_people(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairs, "MIN_FALSE_MATCHES", 0.5)
    val, arrays = noisy(10, 4, 1), noisy(12, 3, 2)
    arrays |= {f"val_{key}": array for key, array in val.items() if key != "galleries"}
    val["galleries"] = val["galleries"][:1]  # of val, the first photo of each person
    scores = pair_scores(arrays, 0)
    matched = exceeded_by(brute_pairs(val)[0], 0.1)
    returned = exceeded_by([other for mate, other in brute_searches(val)[0] if mate is None], 0.1)

    def expected(without: str = "") -> dict[str, float]:
        impostor, genuine = brute_pairs(arrays, without)
        missed, found = [], []
        for searches in brute_searches(arrays, without):
            inside = [(mate, other) for mate, other in searches if mate is not None]
            missed.append(np.mean([mate <= max(returned, other) for mate, other in inside]))
            found.append(np.mean([other > returned for mate, other in searches if mate is None]))
        return {
            "fnmr_at_val_fmr_0.1": float(np.mean([x <= matched for x in genuine])),
            "fmr_at_val_fmr_0.1": float(np.mean([x > matched for x in impostor])),
            "fnir_at_val_fpir_0.1": float(np.mean(missed)),
            "fpir_at_val_fpir_0.1": float(np.mean(found)),
        }

    for key, value in expected().items():
        measure = MEASURES[key].function(scores)
        assert 0 < value < 1
        assert measure.value == pytest.approx(value), key
        for place, person in enumerate(measure.people):
            assert measure.leave_one_out[place] == pytest.approx(expected(person)[key]), key
    assert {measure.key for measure in MEASURES.values() if measure.needs == "val"} >= {*expected()}

    monkeypatch.setattr(pairs, "MIN_FALSE_MATCHES", 4.6)  # 45 pairs of people, 5 not enrolled
    for key in expected():
        measure = MEASURES[key].function(scores)
        assert math.isnan(measure.value)
        assert math.isnan(interval_of(measure).low)


def test_every_two_groups_have_their_rates_at_one_threshold() -> None:
    arrays = noisy(40, 3, 3)
    person = np.repeat(np.arange(40), 3)
    arrays["group_hand"] = np.array(["few", "left", "right"])[np.digitize(person, [9, 21])]
    arrays["group_ring"] = np.where(np.arange(120) % 3, "with", "without")  # 2 of 3 photos
    found = to_json(compute_pairs(arrays))["all_pairs"]["differentials"]
    assert found["fmr"] == 0.1  # 780 pairs of people: 78 may match falsely, at .01 only 8
    assert found["threshold"] == pytest.approx(exceeded_by(brute_pairs(arrays)[0], 0.1))
    similarity = pair_scores(arrays, 0).similarity

    def errors(grouping: str, groups: set[str], key: str, without: int = -1) -> list[bool]:
        labels = arrays[f"group_{grouping}"]
        return [
            (similarity[i, j] > found["threshold"]) == (key == "fmr")
            for i, j in itertools.combinations(np.flatnonzero(person != without), 2)
            if (person[i] == person[j]) == (key == "fnmr") and {labels[i], labels[j]} == groups
        ]

    for grouping, by_group in found["groups"].items():
        for one, others in by_group.items():
            for other, cell in others.items():
                for key, rate in cell.items():
                    expected = errors(grouping, {one, other}, key)
                    assert rate["n_pairs"] == len(expected)
                    few = "few" in (one, other) or not expected
                    assert (rate["value"] is None) == (rate["high"] is None) == few
                    assert few or rate["value"] == pytest.approx(np.mean(expected))
    assert found["groups"]["hand"].keys() == {"few", "left", "right"}
    cell = found["groups"]["hand"]["left"]["right"]
    assert (cell["fmr"]["n_people"], cell["fnmr"]["n_pairs"]) == (12 + 19, 0)
    assert found["groups"]["ring"]["with"]["without"]["fnmr"]["n_pairs"] == 40 * 2

    rate, people = cell["fmr"], range(9, 40)
    left_out = [np.mean(errors("hand", {"left", "right"}, "fmr", who)) for who in people]
    error = math.sqrt(30 / 31 * sum((x - np.mean(left_out)) ** 2 for x in left_out))
    effective = 1 / (12 * (0.5 / 12) ** 2 + 19 * (0.5 / 19) ** 2)  # each group: half of the pairs
    distance = t_quantile(effective - 1) * error / rate["value"] / (1 - rate["value"])
    odds = rate["value"] / (1 - rate["value"]) * np.exp([-distance, distance])
    assert [rate["low"], rate["high"]] == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize("kind", ["all_pairs", "beyond_2_frames"])
def test_likelihood_ratios_are_calibrated_on_other_people(disjoint: Arrays, kind: str) -> None:
    found = compute_metrics(disjoint, ("identity",), unseen=True)["identity"]["matching"][kind]
    block = found["likelihood_ratio"]
    embeddings = disjoint["embedding"].astype(float)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    people, frames = disjoint["people"], disjoint["frame_number"]
    pairs = [
        (people[i], people[j], units[i] @ units[j])
        for i in range(len(people))
        for j in range(i)
        if kind == "all_pairs" or people[i] != people[j] or abs(frames[i] - frames[j]) > 2
    ]
    parts: list[tuple[bool, ScoreCalibration, np.ndarray]] = []
    for one in sorted(set(people)):
        for other in sorted(set(people)):
            if one > other:
                continue
            used = [p for p in pairs if not {one, other} & {p[0], p[1]}]
            count = Counter(frozenset(p[:2]) for p in used)
            genuine = np.array([a == b for a, b, _ in used])
            calibration = fit_calibration(
                np.array([score for *_, score in used]),
                genuine,
                np.array([1 / count[frozenset(p[:2])] for p in used]),
            )
            assert calibration is not None
            scores = np.array([score for a, b, score in pairs if {a, b} == {one, other}])
            parts.append((one == other, calibration, scores))
    low = max(calibration.log10_min for _, calibration, _ in parts)
    high = min(calibration.log10_max for _, calibration, _ in parts)
    kinds = [
        np.concatenate(
            [
                (c.slope * scores + c.intercept).clip(low * math.log(10), high * math.log(10))
                for genuine, c, scores in parts
                if genuine is kind
            ]
        )
        for kind in (True, False)
    ]
    assert (len(kinds[0]), len(kinds[1])) == (found["n_genuine"], found["n_impostor"])
    costs = np.log2(1 + np.exp(-kinds[0])), np.log2(1 + np.exp(kinds[1]))
    assert block["cllr"] == pytest.approx(sum(cost.mean() for cost in costs) / 2)
    assert block["misleading_genuine"] == pytest.approx((kinds[0] < 0).mean())
    assert block["misleading_impostor"] == pytest.approx((kinds[1] > 0).mean())
    assert (block["log10_lr_min"], block["log10_lr_max"]) == (low, high)
    assert -math.log10(6) < block["log10_lr_min"] <= 0 <= block["log10_lr_max"] < 1
    assert block["slope"] == pytest.approx(np.mean([c.slope for _, c, _ in parts]))
    assert block["calibration_people"] == 4
    assert {"cllr", "misleading_genuine", "misleading_impostor"} <= block["intervals"].keys()


def test_without_calibration_or_galleries_their_blocks_are_null(disjoint: Arrays) -> None:
    kept = np.isin(disjoint["people"], np.unique(disjoint["people"])[:3])
    few = {
        key: array[kept] if len(array) == len(kept) else array
        for key, array in disjoint.items()
        if array.ndim and key != "galleries"
    }
    few["galleries"] = np.unique(few["people"], return_index=True)[1][None]
    few["identity_temperature"] = disjoint["identity_temperature"]
    found = compute_metrics(few, ("identity",), unseen=True)["identity"]["matching"]
    assert found["all_pairs"]["likelihood_ratio"] is None
    del disjoint["galleries"]
    found = compute_metrics(disjoint, ("identity",), unseen=True)["identity"]["matching"]
    assert found["all_pairs"]["likelihood_ratio"] is None
    assert found["all_pairs"]["open_set"] is None
    assert "rank_1" not in found["all_pairs"]
    assert found["all_pairs"]["baselines"] == {"chance": {"eer": 0.5}}


def test_without_frame_numbers_near_duplicates_cannot_be_excluded(disjoint: Arrays) -> None:
    disjoint["frame_number"][3] = np.nan
    found = compute_metrics(disjoint, ("identity",), unseen=True)["identity"]["matching"]
    assert found["beyond_2_frames"] is None
    assert found["all_pairs"] is not None


def test_too_many_photos_are_not_compared(paper: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_json, "MAX_COMPARED_PHOTOS", len(paper["people"]) - 1)
    found = compute_metrics(paper, ("identity",), unseen=False)
    assert found["identity"]["verification"] is None
