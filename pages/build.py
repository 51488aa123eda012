"""The page of an evaluation or of a training, from the files in its folder: no model, no data."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from measures.classes import true_ranks
from pages.charts import (
    age_chart,
    cmc_chart,
    confusion_chart,
    headline_chart,
    pair_charts,
    people_chart,
    percent,
    reliability_chart,
    slice_charts,
    training_charts,
)
from pages.html import (
    NOTHING,
    Html,
    bullets,
    details,
    escape,
    group,
    heading,
    image,
    item_list,
    join,
    page,
    paragraph,
    section,
    table,
    terms,
)
from pages.wording import (
    KINDS,
    NONE,
    ONE_SESSION,
    TASKS,
    TERMS,
    Headline,
    between,
    headlines,
    is_of_strangers,
    leakage_rows,
    matching_of,
    name,
    number,
    summary,
    verdict,
    warnings,
    what_the_control_means,
    what_was_measured,
)
from utils import UserError, atomic_write

METRICS_KEYS = ("protocol", "aspect", "split", "backbone", "n_images", "tasks")

PHOTO_SIDE, PHOTO_QUALITY = 160, 70  # pixels; of JPEG

N_PHOTOS = 6  # mistakes of each task, and as many random photos with every answer right

N_PEOPLE = 10  # who are named as often wrong; all are in a table to open

LEFT_OUT = "they were left out, as hand photos are biometric data"

FOOTER = (
    "Written by IGAE-Net's report.py. Research software: a score is no proof of identity. Hand"
    " photos and what is said of them are biometric data; keep this page accordingly."
)

MEASURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "batch_mean_balanced_accuracy": "per-batch mean (as published; not a balanced accuracy)",
    "top_5": "top-5",
    "roc_auc": "ROC AUC",
    "within_one_group": "within one age group",
    "mae_years": "mean absolute error",
    "quadratic_weighted_kappa": "quadratic weighted kappa (1 perfect, 0 chance)",
    "brier": "Brier score (0 perfect)",
    "expected_calibration_error": "expected calibration error",
    "log_loss": "log loss in nats (0 perfect)",
}

PLAIN = ("quadratic_weighted_kappa", "brier", "log_loss")  # no share of anything

PAIR_MEASURES = {
    **{"n_genuine": "genuine pairs", "n_impostor": "impostor pairs", "eer": "EER"},
    **{"fnmr_at_fmr_0.01": "FNMR at FMR 1 %", "fnmr_at_fmr_0.001": "FNMR at FMR 0.1 %"},
    **{"rank_1": "rank-1", "rank_5": "rank-5", "rank_10": "rank-10", "mAP": "mAP", "mINP": "mINP"},
}

OPEN_SET = {
    "n_gallery_people": "people in the gallery",
    "n_outside_people": "people outside the gallery",
    "fnir_at_fpir_0.01": "FNIR at FPIR 1 %",
    "fnir_at_fpir_0.1": "FNIR at FPIR 10 %",
}

LIKELIHOOD = {
    "calibrated_on": "calibrated on the split",
    "calibration_people": "people calibrated on",
    "calibration_pairs": "pairs calibrated on",
    "cllr": "Cllr in bits",
    "cllr_interval": "Cllr, 95 % interval",
    "cllr_min": "Cllr min in bits",
    "misleading_genuine": "misleading: pairs of one person with LR under 1",
    "misleading_impostor": "misleading: pairs of two people with LR over 1",
}


# ----------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Results:
    """What test.py wrote: metrics.json, predictions.csv, predictions.npz."""

    folder: Path
    metrics: dict[str, Any]
    table: pd.DataFrame
    arrays: dict[str, np.ndarray]

    @property
    def tasks(self) -> list[str]:
        """The tasks that were classified: not the identity of strangers."""
        strangers = is_of_strangers(self.metrics)
        return [task for task in TASKS if task != "identity" or not strangers]

    def answers(self, task: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Return true classes, (N,), logits, (N, C), and temperature of the photos of known class.

        Of files of older versions without the latter, 1.
        """
        true = self.arrays[f"{task}_true"]
        logits = self.arrays[f"{task}_logits"][true >= 0].astype(np.float64)
        return true[true >= 0], logits, float(self.arrays.get(f"{task}_temperature", 1.0))


def read_results(folder: Path) -> Results:
    """Return what test.py wrote into a folder.

    Raises:
        UserError: a file is missing, cannot be read, or belongs to another evaluation.
    """
    metrics = _read_json(folder / "metrics.json", METRICS_KEYS, "test.py")
    if not isinstance(metrics["tasks"], dict):
        raise UserError(f"{folder / 'metrics.json'}: tasks is no table; run test.py again")
    answers = _read_answers(folder / "predictions.csv")
    arrays = _read_arrays(folder / "predictions.npz")
    if len(answers) != len(arrays["gender_true"]):
        raise UserError(
            f"{folder}: predictions.csv has {len(answers)} rows, predictions.npz"
            f" {len(arrays['gender_true'])}; run test.py again"
        )
    return Results(folder, metrics, answers, arrays)


def _read_json(path: Path, keys: Sequence[str], author: str) -> dict[str, Any]:
    """Return a JSON object that has the keys."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); give a folder that {author} wrote"
        ) from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; give a folder that {author} wrote")
    return found


def _read_answers(path: Path) -> pd.DataFrame:
    """Return predictions.csv: texts, but for the probabilities."""
    columns = {f"{task}_{part}" for task in TASKS for part in ("true", "pred", "prob")}
    try:
        found = pd.read_csv(path, dtype=str, keep_default_na=False)
        if missing := sorted(columns.union({"image_path"}) - set(found.columns)):
            raise ValueError(f"it lacks the columns {', '.join(missing)}")
        return found.assign(**{f"{t}_prob": found[f"{t}_prob"].astype(float) for t in TASKS})
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run test.py again") from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return predictions.npz, checked for the rows of each task."""
    try:
        with np.load(path) as file:
            found = {key: file[key] for key in file.files}
        for task in TASKS:
            rows = len(found[f"{task}_true"])
            shape = (rows, len(found[f"{task}_classes"]))
            if found[f"{task}_logits"].shape != shape or rows != len(found["gender_true"]):
                raise ValueError(f"{task}_logits does not fit {task}_true and {task}_classes")
        return found
    except KeyError as error:
        raise UserError(f"{path} lacks {error}; run test.py again") from error
    except Exception as error:  # numpy and zipfile raise half a dozen types for damaged files
        raise UserError(f"{path} cannot be read ({error}); run test.py again") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; one that a kill left unfinished at the end is dropped.

    Raises:
        UserError: the file cannot be read, or holds no epoch.
    """
    records: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        for i, line in enumerate(lines):
            try:
                records.append(json.loads(line))
                records[-1]["epoch"] + 0
            except (ValueError, TypeError, KeyError) as error:
                if i < len(lines) - 1:
                    raise ValueError(f"line {i + 1} holds no epoch") from error
                del records[i:]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); give a folder that train.py wrote"
        ) from error
    if not records:
        raise UserError(f"{path} holds no epoch yet; train first")
    return records


def best_epoch(run_dir: Path) -> int | None:
    """Return the epoch that train.py kept as the best; None: its checkpoint is not there."""
    found = [re.fullmatch(r"checkpoint-(\d+)-best", p.stem) for p in run_dir.glob("*-best.pth")]
    return max((int(match[1]) for match in found if match), default=None)


# ----------------------------------------------------------------------------- the answer


def answer_blocks(results: Results) -> list[Html]:
    """Return what comes first: what was measured, what must be known, the numbers, how sure."""
    metrics = results.metrics
    lines = headlines(metrics["tasks"])
    reason = metrics.get("protocol_reason")
    warned = warnings(metrics)
    pairs = matching_of(metrics["tasks"])
    return [
        paragraph(what_was_measured(metrics), "lead"),
        paragraph(summary(lines), "lead"),
        paragraph(f"Why this protocol: {reason}") if reason else NOTHING,
        group("warnings", [heading("Before you read the numbers"), bullets(warned)])
        if warned
        else NOTHING,
        item_list("cards", [card(line) for line in lines]),
        paragraph(ONE_SESSION) if pairs else NOTHING,
        headline_chart(lines),
        details("What the terms mean", terms(TERMS)),
    ]


def card(line: Headline) -> Html:
    """Return a headline number with its interval, controls and verdict."""
    sure = between(line.low, line.high, line.measure)
    beside = [f"{name(k)} {number(v, line.measure)}" for k, v in line.controls.items()]
    return join(
        [
            heading(line.name[0].upper() + line.name[1:]),
            paragraph(number(line.value, line.measure), "number"),
            paragraph(f"95 % interval {sure}, {line.n_photos} photos of {line.n_people} people")
            if sure != NONE
            else NOTHING,
            paragraph(f"Controls: {', '.join(beside)}") if beside else NOTHING,
            paragraph(verdict(line), "quiet"),
        ]
    )


def control_blocks(results: Results) -> list[Html]:
    """Return what the difference to the controls means, and how near the training photos are."""
    leakage = results.metrics.get("leakage")
    near = NOTHING
    if leakage:
        rows = leakage_rows(leakage)
        near = join(
            [
                heading("Leakage"),
                paragraph(
                    "How near these photos are to those trained on. Frames of one video a number"
                    " or two apart are almost the same picture: answering them is remembering."
                ),
                table("Share of the photos reported on of which", ["", "share"], rows),
            ]
        )
    return [
        paragraph(what_the_control_means(is_of_strangers(results.metrics))),
        paragraph(
            "Majority class always gives the most frequent answer of the training photos. Identity"
            " lookup gives what the training photos say of the person whom the identity head names;"
            " nearest embedding, of the person on the training photo that is most alike."
        ),
        near,
        measure_table(results),
        pair_table(matching_of(results.metrics["tasks"])),
    ]


def measure_table(results: Results) -> Html:
    """Return all measures of the classified tasks, to open."""
    blocks = {task: results.metrics["tasks"].get(task) or {} for task in results.tasks}

    def row(title: str, key: str, parts: Sequence[Mapping[str, Any]]) -> list[str]:
        values = [part.get(key) for part in parts]
        if key in PLAIN:
            return [title, *(NONE if value is None else f"{value:.3f}" for value in values)]
        return [title, *(number(value, key) for value in values)]

    after = list(blocks.values())
    before = [block.get("before_temperature") or {} for block in after]
    rows = [row(title, key, after) for key, title in MEASURES.items()]
    rows += [
        row(f"before temperature: {MEASURES[key]}", key, before)
        for key in ("brier", "expected_calibration_error", "log_loss")
    ]
    there = [line for line in rows if set(line[1:]) != {NONE}]
    shown = table("Every measure of the answers", ["", *map(name, blocks)], there)
    return details("Every measure of the answers", shown)


def pair_table(pairs: Mapping[str, Any]) -> Html:
    """Return all measures of pairs of photos, to open."""
    kinds = {kind: pairs[kind] for kind in KINDS if pairs.get(kind)}
    if not kinds:
        return NOTHING

    def rows(titles: Mapping[str, str], parts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        found = [
            [title, *(shown(part.get(key), key) for part in parts)] for key, title in titles.items()
        ]
        return [line for line in found if set(line[1:]) != {NONE}]

    def shown(value: Any, key: str) -> str:
        if isinstance(value, str) or key.startswith(("n_", "calibration_")):
            return NONE if value is None else str(value)
        if key.startswith("cllr"):
            return NONE if value is None else f"{value:.3f}"
        return number(value, key)

    header = ["", *map(name, kinds)]
    parts = list(kinds.values())
    captions = (
        ("Verification and retrieval", PAIR_MEASURES, parts),
        ("Open-set search", OPEN_SET, [part.get("open_set") or {} for part in parts]),
        ("Likelihood ratios", LIKELIHOOD, [likelihood_facts(part) for part in parts]),
    )
    tables = [table(c, header, found) for c, t, p in captions if (found := rows(t, p))]
    return details("Every measure of pairs of photos", join([paragraph(ONE_SESSION), *tables]))


def likelihood_facts(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured of likelihood ratios, the interval of Cllr as text."""
    facts = part.get("likelihood_ratio") or {}
    sure = (facts.get("intervals") or {}).get("cllr") or {}
    if sure.get("low") is None or sure.get("high") is None:
        return facts
    return {**facts, "cllr_interval": f"{sure['low']:.3f} to {sure['high']:.3f}"}


# ----------------------------------------------------------------------------- charts


def chart_blocks(results: Results) -> list[Html]:
    """Return the charts of classes, ranks, pairs, confidence and age."""
    arrays, tasks = results.arrays, results.metrics["tasks"]
    charts = [
        confusion_chart(results.table, task, arrays[f"{task}_classes"].tolist())
        for task in results.tasks
    ]
    if "identity" in results.tasks:
        true, logits, _ = results.answers("identity")
        ranks = true_ranks(logits, true).astype(np.float64)
        charts.append(
            cmc_chart([("identity head", ranks)], logits.shape[1], "the people trained on")
        )
    charts += pair_charts(arrays, matching_of(tasks))
    for task in results.tasks:
        charts.append(reliability_chart(task, *results.answers(task), tasks.get(task) or {}))
    _, logits, temperature = results.answers("age")
    beside = [arrays.get(key) for key in ("mean_ages", "age_years", "people")]
    charts.append(age_chart(logits, temperature, *beside))
    return [group("charts", charts)]


def group_blocks(results: Results) -> list[Html]:
    """Return the slices: charts of each task and of pairs, by gender, age, skin, accessories."""
    tasks = results.metrics["tasks"]
    pairs = matching_of(tasks)
    parts = {name(task): tasks.get(task) or {} for task in results.tasks}
    parts |= {name(kind): pairs.get(kind) or {} for kind in KINDS}
    charts = [
        found
        for title, part in parts.items()
        for found in slice_charts(title[0].upper() + title[1:], part.get("slices"))
    ]
    if not charts:
        return []
    return [
        paragraph(
            "The same numbers within groups of people. A gap is more than chance where its interval"
            " leaves out 0."
        ),
        group("charts", charts),
    ]


# ----------------------------------------------------------------------------- people and photos


def shares_right(results: Results) -> pd.DataFrame:
    """Return the share of each person's photos answered right, a column per task."""
    people = results.table["identity_true"]
    right = {t: results.table[f"{t}_true"] == results.table[f"{t}_pred"] for t in results.tasks}
    return pd.DataFrame(right).groupby(people).mean()


def people_blocks(results: Results) -> list[Html]:
    """Return who is often wrong: a chart, the people most often wrong, and all to open."""
    if not len(results.table):
        return []
    shares = shares_right(results)
    photos = results.table["identity_true"].value_counts()
    order = shares.mean(axis=1).sort_values(kind="stable").index
    rows = [
        [str(who), str(photos[who]), *(percent(value) for value in shares.loc[who])]
        for who in order
    ]
    header = ["person", "photos", *map(name, results.tasks)]
    wrong = [row for row, who in zip(rows, order, strict=True) if (shares.loc[who] < 1).any()]
    named = paragraph("Every photo of everybody was answered right.")
    if wrong:
        named = table("Most often wrong: share answered right", header, wrong[:N_PEOPLE])
    everybody = table("Share of photos answered right, everybody", header, rows)
    return [people_chart(shares), named, details(f"All {len(rows)} people", everybody)]


def choose_photos(answers: pd.DataFrame, tasks: Sequence[str], seed: int = 0) -> dict[str, list]:
    """Return rows to show: each task's most confident mistakes, and random hits, by heading."""
    wrong = {task: answers[f"{task}_true"] != answers[f"{task}_pred"] for task in tasks}
    chosen = {}
    for task, mistaken in wrong.items():
        sure = answers.loc[mistaken, f"{task}_prob"].sort_values(ascending=False, kind="stable")
        chosen[f"Most confident mistakes: {name(task)}"] = sure.index[:N_PHOTOS].tolist()
    hits = np.flatnonzero(~np.any(list(wrong.values()), axis=0))
    drawn = np.random.default_rng(seed).permutation(hits)[:N_PHOTOS]
    chosen["Random photos with every answer right"] = sorted(drawn.tolist())
    return chosen


def small_photo(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Return a photo as a small JPEG, with its width and height.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as photo:
            photo.draft("RGB", (2 * PHOTO_SIDE, 2 * PHOTO_SIDE))
            small = ImageOps.exif_transpose(photo).convert("RGB")
        small.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"photo {path}, of predictions.csv, cannot be read ({error}); give --photos DIR, or"
            " --no_photos"
        ) from error
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=PHOTO_QUALITY)
    return buffer.getvalue(), small.size


def photo_box(row: pd.Series, tasks: Sequence[str], photos: Path) -> Html:
    """Return one photo with truth and answers, a mistake by a cross and in bold."""
    file_name = Path(row["image_path"]).name
    said, lines = [], []
    for task in tasks:
        true, answer, sure = (row[f"{task}_{part}"] for part in ("true", "pred", "prob"))
        right = true == answer
        text = f"{name(task)} {answer} ({percent(sure)})" + ("" if right else f", is {true}")
        said.append(f"{text}{', right' if right else ', wrong'}")
        kind = "" if right else ' class="wrong"'
        lines.append(Html(f"<div{kind}>{'✓' if right else '✗'} {escape(text)}</div>"))
    data, size = small_photo(photos / file_name)
    picture = image(data, f"Hand photo {file_name}: {'; '.join(said)}", size)
    caption = join([*lines, Html(f'<div class="quiet">{escape(file_name)}</div>')])
    return Html(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")


def photo_blocks(results: Results, photos: Path | None, why_none: str) -> list[Html]:
    """Return photos with truth and answers, or why there are none."""
    if photos is None:
        return [paragraph(f"No photo is embedded: {why_none}.")]
    blocks = []
    for title, rows in choose_photos(results.table, results.tasks).items():
        boxes = [photo_box(results.table.iloc[row], results.tasks, photos) for row in rows]
        blocks += [heading(title), item_list("photos", boxes) or paragraph("None.")]
    return blocks


# ----------------------------------------------------------------------------- to repeat it


def fact_table(caption: str, facts: Mapping[str, Any] | None) -> Html:
    """Return a table of names and values; nothing without one."""
    rows = [
        [key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for key, value in (facts or {}).items()
    ]
    return table(caption, ["name", "value"], rows, "long") if rows else NOTHING


def run_tables(run: Mapping[str, Any]) -> list[Html]:
    """Return what a run's config.json, or the same parts of metrics.json, says."""
    facts = {key: run[key] for key in ("commit", "aspect", "best") if key in run}
    captions = {
        "config": "Flags of the training",
        "resolved": "What auto came to",
        "environment": "Versions and machine of the training",
        "fingerprints": "Fingerprints of the split files",
    }
    tables = [fact_table(caption, run.get(key)) for key, caption in captions.items()]
    return [fact_table("The training", facts), *tables]


def repeat_blocks(results: Results) -> list[Html]:
    """Return everything needed to repeat the evaluation and its training."""
    metrics = results.metrics
    beside = results.folder.parent / "config.json"
    run = metrics.get("training") or {}
    if beside.is_file():
        run = {**_read_json(beside, (), "train.py"), **run}
    apart = ("tasks", "environment", "training", "leakage", "command", "protocol_reason")
    facts = {key: value for key, value in metrics.items() if key not in apart}
    command = metrics.get("command")
    return [
        Html(f"<pre>{escape(command)}</pre>")
        if command
        else paragraph("The command was not stored."),
        fact_table("The evaluation", facts),
        fact_table("Versions and machine of the evaluation", metrics.get("environment")),
        details("The training", join(run_tables(run))),
    ]


def curve_blocks(run_dir: Path) -> list[Html]:
    """Return the training's curves where the run's folder is beside, or why there are none."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        records = read_records(path)
    except UserError as error:
        return [paragraph(f"No curves: {error}")]
    return [group("charts", training_charts(records, best_epoch(run_dir)))]


# ----------------------------------------------------------------------------- pages


def write_page(path: Path, text: str) -> Path:
    """Write a page, all of it or nothing; return its path."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def write_report(folder: Path, *, photos: Path | None, why_none: str = LEFT_OUT) -> Path:
    """Write report.html into the folder of an evaluation; return its path.

    Args:
        folder: with metrics.json, predictions.csv and predictions.npz.
        photos: folder of the photos that predictions.csv names; None embeds none.
        why_none: what the page says then.

    Raises:
        UserError: a file is missing, damaged, or cannot be written.
    """
    results = read_results(folder)
    metrics = results.metrics
    sections = [
        section("answer", "The answer", answer_blocks(results)),
        section("controls", "What the numbers stand beside", control_blocks(results)),
        section("charts", "Charts", chart_blocks(results)),
        section("groups", "By group", group_blocks(results)),
        section("people", "By person", people_blocks(results)),
        section("photos", "Photos", photo_blocks(results, photos, why_none)),
        section("training", "How it was trained", curve_blocks(folder.parent)),
        section("repeat", "To repeat it", repeat_blocks(results)),
    ]
    title = f"Hands: {metrics['aspect']}, {metrics['split']}, protocol {metrics['protocol']}"
    return write_page(folder / "report.html", page(title, sections, FOOTER))


def write_training_report(run_dir: Path) -> Path:
    """Write training.html into the folder of a run; return its path.

    Raises:
        UserError: metrics.jsonl or config.json is missing, damaged, or the page cannot be written.
    """
    records = read_records(run_dir / "metrics.jsonl")
    run = _read_json(run_dir / "config.json", ("config",), "train.py")
    best = best_epoch(run_dir)
    config = run["config"]
    said = (
        f"{records[-1]['epoch']} epochs of {config.get('backbone')} on {run.get('aspect')},"
        f" protocol {config.get('protocol')}."
    )
    sections = [
        section("answer", "The answer", [paragraph(said, "lead"), *best_blocks(records, best)]),
        section("charts", "Curves", [group("charts", training_charts(records, best))]),
        section("repeat", "To repeat it", run_tables(run)),
    ]
    return write_page(
        run_dir / "training.html", page(f"Training: {run_dir.resolve().name}", sections, FOOTER)
    )


def best_blocks(records: Sequence[Mapping[str, Any]], best: int | None) -> list[Html]:
    """Return what the best epoch scored on val."""
    record = next((r for r in records if r["epoch"] == best), None)
    if record is None:
        return [paragraph("Which epoch was kept is not known: its checkpoint is not there.")]
    keys = {f"{name(task)}, balanced accuracy": f"val_balanced_accuracy_{task}" for task in TASKS}
    keys["strangers, rank-1"] = "val_rank_1"
    rows = [[title, percent(record[key])] for title, key in keys.items() if record.get(key)]
    return [
        paragraph(
            f"Kept: epoch {best}, the best on val. It was chosen for these numbers, so they are a"
            " little too good; test.py gives the others, with intervals."
        ),
        table(f"Epoch {best} on val", ["", "score"], rows),
    ]
