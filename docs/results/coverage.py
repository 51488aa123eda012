"""Coverage of the confidence intervals: how often they contain a known truth.

    python docs/results/coverage.py --repetitions 400

simulates data sets with as many photos per person as dorsal_dr has (coverage_photos.csv), computes
every headline measure and those of `CURVES` with their intervals as test.py does, and writes
coverage.csv and coverage.md beside this file. People differ: each has a probability of being right,
and a centre and a spread of embeddings. Rank-1 and mAP depend on the size of the gallery, so their
truth is the mean over the repetitions; that of the other measures comes from a large simulated
population, as does a threshold at which FMR and FNMR are measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from measures.classes import expected_age, softmax  # noqa: E402
from measures.intervals import (  # noqa: E402
    Interval,
    PeopleMeasure,
    interval_of,
    people_average,
)
from measures.likelihood_ratio import people_pair_rate  # noqa: E402
from measures.metrics_json import headline_measures, pair_scores  # noqa: E402
from measures.pairs import compare_all, cosine_similarity  # noqa: E402
from measures.registry import DET_RATES, MEASURES, PROBE_PHOTOS  # noqa: E402

PHOTOS = pd.read_csv(FOLDER / "coverage_photos.csv")["photos"].to_numpy()  # of each person

AGE_PEOPLE = np.array([33, 57, 27, 12, 9, 5])  # of dorsal_dr, in each age group

AGES = np.array([19, 21, 22, 23, 26, 45])  # in years, one for each age group

MALE = 60 / 143  # fraction of dorsal_dr's people

SKILL = 1.3, 1.3  # score of the true class: mean over people, standard deviation over people

SPREAD = 0.8, 0.35  # of photos about their person: median, standard deviation of the logarithm

DIMENSIONS = 32  # of embeddings

N_GALLERIES = 10

THRESHOLD_FMR = 0.1  # false match rate of the population, at the threshold of FMR and FNMR

N_POPULATION = 200  # data sets of 140 people, whose impostor pairs are within a data set

KEPT = 7  # every seventh impostor pair of the population

CURVES = (  # measures with a band
    *(f"fnmr_at_fmr_{rate:g}" for rate in DET_RATES),
    "rank_1_among_10",
    *(f"rank_1_{part}_{n_photos}" for n_photos in PROBE_PHOTOS for part in ("fused", "gain")),
)

Arrays = dict[str, np.ndarray]
Key = tuple[str, str]  # task, key of MEASURES


class Design(NamedTuple):
    """People of a fold, number of folds, and the part of each person's photos that is evaluated."""

    people: int
    folds: int
    part: float


# Protocol paper evaluates half of the photos of 140 people, subject-disjoint folds of 28 people.
DESIGNS = {
    "140": Design(140, 1, 0.5),
    "28": Design(28, 1, 1.0),
    "5 folds of 28": Design(28, 5, 1.0),
}


# ----------------------------------------------------------------------------- simulation


def draw_scores(random: np.random.Generator, person: np.ndarray) -> np.ndarray:
    """Return the score of the true class of each photo, (N,): above 0 the prediction is right."""
    mean, deviation = SKILL
    of_people = random.normal(mean, deviation, person.max() + 1)
    return of_people[person] + random.standard_normal(len(person))


def draw_arrays(random: np.random.Generator, counts: np.ndarray) -> Arrays:
    """Return what predictions.npz holds, for people with `counts` photos."""
    n_people, person = len(counts), np.repeat(np.arange(len(counts)), counts)
    n_photos = len(person)
    gender = (random.random(n_people) < MALE).astype(int)[person]
    age = random.choice(len(AGES), n_people, p=AGE_PEOPLE / AGE_PEOPLE.sum())[person]
    arrays: Arrays = {
        "people": person,
        "frame_number": np.zeros(n_photos),
        "age_years": AGES[age].astype(float),
        "mean_ages": AGES.astype(float),
        "galleries": draw_galleries(random, counts),
    }
    for task, true, n_classes in (
        ("identity", person, n_people),
        ("gender", gender, 2),
        ("age", age, len(AGES)),
    ):
        scores, logits = draw_scores(random, person), np.full((n_photos, n_classes), -1000.0)
        other = (true + random.integers(1, n_classes, n_photos)) % n_classes
        logits[np.arange(n_photos), true] = scores
        logits[np.arange(n_photos), other] = 0
        arrays |= {
            f"{task}_true": true,
            f"{task}_logits": logits,
            f"{task}_temperature": np.ones(()),
        }
    median, deviation = SPREAD
    spread = median * np.exp(deviation * random.standard_normal(n_people))
    noise = spread[person, None] * random.standard_normal((n_photos, DIMENSIONS))
    arrays["embedding"] = random.standard_normal((n_people, DIMENSIONS))[person] + noise
    return arrays


def draw_galleries(random: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """Return (N_GALLERIES, n_people) photos, one of each person."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return starts + (random.random((N_GALLERIES, len(counts))) * counts).astype(int)


def draw_folds(random: np.random.Generator, design: Design) -> list[Arrays]:
    """Return the arrays of each fold; no person is in two."""
    counts = random.permutation(PHOTOS)[: design.people * design.folds]
    parts = np.split(np.ceil(counts * design.part).astype(int), design.folds)
    folds = [draw_arrays(random, part) for part in parts]
    for number, fold in enumerate(folds):
        fold["people"] = fold["people"] + number * design.people
    return folds


def rate_keys() -> dict[Key, bool]:
    """Return the keys of rates at a threshold set on other people -> whether of genuine pairs."""
    names = (("fmr", False), ("fnmr", True))
    return {("identity", f"{name}_at_val_fmr_{THRESHOLD_FMR:g}"): kind for name, kind in names}


def rates_at(arrays: Arrays, threshold: float) -> dict[Key, PeopleMeasure]:
    """Return FMR and FNMR at a threshold that was set on other people."""
    similarity = cosine_similarity(arrays["embedding"], arrays["embedding"])
    np.fill_diagonal(similarity, -np.inf)
    pairs = compare_all(similarity, arrays["people"])
    return {
        key: people_pair_rate((pairs.score > threshold) != genuine, *pairs[1:], genuine=genuine)
        for key, genuine in rate_keys().items()
    }


def measure_once(
    repetition: int, design: Design, seed: int, threshold: float
) -> dict[Key, Interval]:
    """Return each measure of a simulated data set: averaged over folds, curves of one fold only."""
    random = np.random.default_rng([seed, repetition])
    tasks = ("identity", "gender", "age")
    folds = []
    for arrays in draw_folds(random, design):
        fold = headline_measures(arrays, tasks, unseen=True) | rates_at(arrays, threshold)
        if design.folds == 1:
            scores = pair_scores(arrays, 0)
            fold |= {("identity", key): MEASURES[key].function(scores) for key in CURVES}
        folds.append(fold)
    return {key: interval_of(people_average([fold[key] for fold in folds])) for key in folds[0]}


# ----------------------------------------------------------------------------- truth


def population_values(seed: int) -> tuple[dict[Key, float], float]:
    """Return the measures of a large population that need no gallery, and the threshold."""
    random = np.random.default_rng([seed, 10**6])
    parts, genuine, impostor = [], [], []
    for _ in range(N_POPULATION):
        arrays = draw_arrays(random, np.ceil(random.permutation(PHOTOS)[:140] / 2).astype(int))
        similarity = cosine_similarity(arrays["embedding"], arrays["embedding"])
        pair = np.triu_indices(len(similarity), k=1)
        same = arrays["people"][pair[0]] == arrays["people"][pair[1]]
        genuine.append(similarity[pair][same])
        impostor.append(similarity[pair][~same][::KEPT])
        identity, gender, age = (arrays[f"{task}_logits"] for task in ("identity", "gender", "age"))
        parts.append(
            {
                "right": identity.argmax(axis=1) == arrays["people"],
                "gender": arrays["gender_true"],
                "score": gender[:, 1] - gender[:, 0],
                "age": arrays["age_true"],
                "predicted": age.argmax(axis=1),
                "error": np.abs(arrays["age_years"] - expected_age(softmax(age), AGES)),
            }
        )
    photos = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    mates, others = np.concatenate(genuine), np.concatenate(impostor)
    threshold = float(np.quantile(others, 1 - THRESHOLD_FMR))
    rates = (
        float((mates <= threshold).mean()) if same else THRESHOLD_FMR for same in (False, True)
    )
    values = {
        ("identity", "balanced_accuracy"): photos["right"].mean(),  # people are alike
        ("gender", "balanced_accuracy"): balanced_accuracy_score(
            photos["gender"], photos["score"] > 0
        ),
        ("gender", "roc_auc"): roc_auc_score(photos["gender"], photos["score"]),
        ("age", "balanced_accuracy"): balanced_accuracy_score(photos["age"], photos["predicted"]),
        ("age", "mae_years"): photos["error"].mean(),
        ("identity", "eer"): crossing(mates, others),
    } | {
        ("identity", f"fnmr_at_fmr_{rate:g}"): (mates < np.quantile(others, 1 - rate)).mean()
        for rate in DET_RATES
    }
    return values | dict(zip(rate_keys(), rates, strict=True)), threshold


def crossing(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Return the equal error rate of many scores."""
    genuine, impostor = np.sort(genuine), np.sort(impostor)
    fnmr = np.searchsorted(genuine, genuine) / len(genuine)
    fmr = 1 - np.searchsorted(impostor, genuine) / len(impostor)
    place = np.argmax(fnmr >= fmr)
    return float((fnmr[place] + fmr[place]) / 2)


# ----------------------------------------------------------------------------- tables


def coverage_table(
    found: Sequence[dict[Key, Interval]], truths: dict[Key, float], people: str
) -> pd.DataFrame:
    """Return a row for each measure.

    Args:
        found: of each repetition.
        truths: of the measures that do not depend on the size of a gallery.
        people: name of the design.
    """
    rows = []
    for key in found[0]:
        intervals = np.array([result[key][:3] for result in found])
        value, low, high = intervals[~np.isnan(intervals).any(axis=1)].T
        if not len(value):  # too few people
            continue
        truth = truths.get(key, value.mean())
        coverage = ((low <= truth) & (truth <= high)).mean()
        rows.append(
            {
                "task": key[0],
                "measure": key[1],
                "people": people,
                "repetitions": len(value),
                "truth": truth,
                "mean_value": value.mean(),
                "coverage": coverage,
                "monte_carlo_error": np.sqrt(coverage * (1 - coverage) / len(value)),
                "truth_above": (high < truth).mean(),
                "truth_below": (low > truth).mean(),
                "mean_width": (high - low).mean(),
            }
        )
    return pd.DataFrame(rows)


def table_text(table: pd.DataFrame, command: str) -> str:
    """Return coverage.md."""
    lines = [
        "# Coverage of the confidence intervals",
        "",
        "How often the nominal 95 % interval contains the truth, in simulated data sets with as"
        " many photos per person as `dorsal_dr`.",
        "",
        f"```\n{command}\n```",
        "",
        "| measure | people | coverage | Monte-Carlo error | mean width | truth | mean value |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        shown = ("coverage", "monte_carlo_error", "mean_width", "truth", "mean_value")
        name = f"{row['task']}: {MEASURES[row['measure']].name}"
        cells = [name, row["people"], *(f"{row[column]:.3f}" for column in shown)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=400, help="data sets of each design")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--processes", type=int, default=2, help="parallel processes")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the tables")
    flags = parser.parse_args(argv)
    truths, threshold = population_values(flags.seed)
    tables = []
    with ProcessPoolExecutor(flags.processes) as pool:
        for name, design in DESIGNS.items():
            once = partial(measure_once, design=design, seed=flags.seed, threshold=threshold)
            found = list(pool.map(once, range(flags.repetitions), chunksize=5))
            tables.append(coverage_table(found, truths, name))
            print(tables[-1].to_string(index=False), flush=True)
    table = pd.concat(tables).sort_values(["task", "measure"], kind="stable")
    table.to_csv(flags.output / "coverage.csv", index=False, float_format="%.4f")
    command = f"python docs/results/coverage.py --repetitions {flags.repetitions}"
    (flags.output / "coverage.md").write_text(
        table_text(table, f"{command} --seed {flags.seed}"), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
