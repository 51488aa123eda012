"""The reports of an evaluation and of a training run, from the files in their folders.

Python prepares tables, charts and sentences; the templates beside this file lay them out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from data.tables import photo_names
from dataset_11k import TASKS, open_photo
from engine.checkpoint import best_checkpoint, check_types, read_epochs, read_run
from measures.intervals import FEW_PEOPLE
from measures.metrics_json import class_predictions
from measures.registry import BASELINES, MEASURES, PAIR_KINDS, PERCENT
from pages import charts, wording
from pages.charts import Chart, Table, data_uri
from pages.figures import PHOTO_COLUMNS, PhotoPanel, draw_photos, save_figure
from pages.wording import capitalize, name_of
from utils import UserError, write_text

METRICS_KEYS = ("protocol", "aspect", "split", "backbone", "n_images", "tasks")

PHOTO_SIZE, JPEG_QUALITY = 160, 70  # pixels of a photo's longer side in the report

GRID_PHOTO_SIZE = 400  # pixels in sample_grid.png

N_PEOPLE = 10  # with the most errors; a folded table shows everybody

NO_PHOTOS = "hand photos are biometric data and were left out"


# ----------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Results:
    """What test.py wrote: metrics.json, predictions.csv, predictions.npz."""

    folder: Path
    metrics: dict[str, Any]
    predictions: pd.DataFrame
    arrays: dict[str, np.ndarray]

    @property
    def tasks(self) -> list[str]:
        """The tasks with photos of a known class."""
        return wording.classified_tasks(self.metrics["tasks"])

    def known(self, task: str) -> np.ndarray:
        """Return which photos have a known class, (N,) bool."""
        return self.arrays[f"{task}_true"] >= 0

    def correct(self) -> pd.DataFrame:
        """Return 1.0 (correct), 0.0 or NaN (class unknown) of each photo, a column per task."""
        table = self.predictions
        columns = {
            t: (table[f"{t}_true"] == table[f"{t}_pred"]).where(self.known(t)) for t in self.tasks
        }
        return pd.DataFrame(columns, index=table.index, dtype=np.float64)


def read_results(folder: Path) -> Results:
    """Return what test.py wrote into a folder.

    Raises:
        UserError: a file is missing, damaged, or belongs to another evaluation.
    """
    metrics = read_metrics(folder)
    tasks = [task for task, block in metrics["tasks"].items() if block]
    predictions = _read_predictions(folder / "predictions.csv", tasks)
    arrays = _read_arrays(folder / "predictions.npz", tasks)
    if len(predictions) != len(arrays["people"]):
        raise UserError(
            f"files of different evaluations: {folder} (predictions.csv has {len(predictions)}"
            f" photos, predictions.npz {len(arrays['people'])}). Run test.py again"
        )
    return Results(folder, metrics, predictions, arrays)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return metrics.json.

    Raises:
        UserError: it is missing, damaged, or no file of test.py.
    """
    path = folder / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = [k for k in METRICS_KEYS if not isinstance(found, dict) or k not in found]
        if missing or not isinstance(found["tasks"], dict):
            raise ValueError(f"no {', '.join(missing) or 'table of tasks'}")
        training = found.get("training") or {}
        check_types(training, dict, "training")
        for key in ("config", "resolved", "environment", "fingerprints"):
            check_types(training.get(key) or {}, dict, f"training.{key}")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}. Give a folder that test.py wrote") from error
    return found


def _read_predictions(path: Path, tasks: Sequence[str]) -> pd.DataFrame:
    """Return predictions.csv: text, except for the probabilities."""
    columns = {f"{task}_{part}" for task in tasks for part in ("true", "pred", "prob")}
    try:
        found = pd.read_csv(path, dtype=str, keep_default_na=False)
        if missing := sorted({"image_path", *columns} - set(found.columns)):
            raise ValueError(f"no columns {', '.join(missing)}")
        return found.assign(**{f"{t}_prob": found[f"{t}_prob"].astype(float) for t in tasks})
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}. Run test.py again") from error


def _read_arrays(path: Path, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Return predictions.npz after a check of the shapes."""
    try:
        with np.load(path) as file:
            found = {key: file[key] for key in file.files}
        for task in tasks:
            shape = (len(found["people"]), len(found[f"{task}_classes"]))
            if found[f"{task}_logits"].shape != shape or len(found[f"{task}_true"]) != shape[0]:
                raise ValueError(f"{task}_logits does not fit {task}_true and {task}_classes")
        return found
    except Exception as error:  # numpy and zipfile raise half a dozen types for damaged files
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"cannot read {path}: {reason}. Run test.py again") from error


def best_epoch(run_dir: Path) -> int | None:
    """Return the epoch of the run's best checkpoint, if it exists."""
    path = best_checkpoint(run_dir)
    return None if path is None else int(path.stem.split("-")[1])


@cache
def templates() -> Environment:
    """Return the templates; all values are HTML-escaped."""
    folder = Path(__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# ----------------------------------------------------------------------------- tables


def baseline_tables(lines: Sequence[wording.Headline]) -> list[Table]:
    """Return the headline numbers with their baselines: of tasks, then of pairs."""
    parts = [[x for x in lines if (x.part in PAIR_KINDS) is pairs] for pairs in (False, True)]
    return [_baseline_table(part) for part in parts if any(x.baselines for x in part)]


def _baseline_table(lines: Sequence[wording.Headline]) -> Table:
    """Return a table with a column for each headline number and a row for each baseline."""
    rows = [["model", *(x.text for x in lines)]]
    for key in (key for key in BASELINES if any(key in x.baselines for x in lines)):
        values = [x.measure.unit.format(x.baselines.get(key)) for x in lines]
        rows.append([name_of(key), *values])
    differences = [x.differences.get(x.best_baseline, (None, None)) for x in lines]
    ends = [x.measure.unit.format_interval(*d) for x, d in zip(lines, differences, strict=True)]
    rows.append(["difference from the strongest baseline, 95 % interval", *ends])
    return Table("Results and baselines", ["", *(x.name for x in lines)], rows)


def measure_table(caption: str, blocks: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return every measure that was computed.

    Args:
        caption: of the table.
        blocks: of metrics.json, by task or by kind of pairs.
    """
    before = {key: block.get("before_temperature") or {} for key, block in blocks.items()}
    rows = []
    for start, parts in (("", blocks), ("before temperature scaling: ", before)):
        for measure in wording.measures_in(list(parts.values())):
            cells = []
            for block in parts.values():
                value, interval = wording.value_of(block, measure)
                ends = interval.get("low"), interval.get("high")
                cells.append(measure.unit.format_both(value, *ends))
            rows.append([f"{start}{measure.name}", *cells])
    return Table(caption, ["95 % confidence interval in brackets", *map(name_of, blocks)], rows)


def differential_tables(metrics_tasks: Mapping[str, Any]) -> list[Table]:
    """Return FMR and FNMR by group and pair of groups, a table for each kind of pairs."""
    pairs = wording.pairs_of(metrics_tasks)
    found = {kind: (pairs.get(kind) or {}).get("differentials") for kind in PAIR_KINDS}
    return [_differential_table(kind, rates) for kind, rates in found.items() if rates]


def _differential_table(kind: str, found: Mapping[str, Any]) -> Table:
    """Return the table of one kind of pairs."""
    rows = []
    for grouping, groups in found["groups"].items():
        for one, others in groups.items():
            for other, cell in others.items():
                name = one if one == other else f"{one} with {other}"
                rows.append([f"{name_of(grouping)}: {name}"])
                for rate in (cell["fmr"], cell["fnmr"]):
                    ends = PERCENT.format_interval(rate["low"], rate["high"])
                    counts = [f"{rate['n_pairs']:,}", str(rate["n_people"])]
                    rows[-1] += [PERCENT.format(rate["value"]), ends, *counts]
    interval = "95 % interval"
    return Table(
        f"FMR and FNMR by group, {name_of(kind)}: similarity above {found['threshold']:.3f}, which"
        f" {PERCENT.format(found['fmr'])} of all impostor pairs exceed",
        [
            "group",
            "FMR",
            interval,
            "impostor pairs",
            "people",
            "FNMR",
            interval,
            "genuine pairs",
            "people",
        ],
        rows,
    )


def class_tables(metrics_tasks: Mapping[str, Any]) -> list[Table]:
    """Return the people of each class, of the tasks in which a class has few."""
    return [
        Table(
            f"{capitalize(name_of(task))}: people of each class",
            ["class", "people", "people with most photos correct"],
            [
                [name, str(count["n_people"]), str(count["n_mostly_right"])]
                for name, count in block["people_per_class"].items()
            ],
        )
        for task, block in metrics_tasks.items()
        if block and block.get("people_per_class")
    ]


def leakage_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the fractions of photos that are close to training photos; None if unknown."""
    if not metrics.get("leakage"):
        return None
    return Table(
        "Leakage: evaluated photos that are close to training photos",
        ["in train", "fraction of photos"],
        wording.leakage_rows(metrics["leakage"]),
    )


def people_tables(results: Results) -> tuple[Table, Table]:
    """Return the people with the most errors, and everybody, worst first."""
    people = pd.Series(results.arrays["people"])
    accuracy = results.correct().groupby(people.to_numpy()).mean()
    photos = people.value_counts()
    order = accuracy.mean(axis=1).sort_values(kind="stable").index
    rows = {
        who: [str(who), str(photos[who]), *map(PERCENT.format, accuracy.loc[who])] for who in order
    }
    wrong = [rows[who] for who in order if (accuracy.loc[who] < 1).any()]
    header = ["person", "photos", *map(name_of, results.tasks)]
    return (
        Table("People with the most errors: fraction of photos correct", header, wrong[:N_PEOPLE]),
        Table("Everybody: fraction of photos correct", header, list(rows.values())),
    )


def fact_table(caption: str, facts: Mapping[str, Any] | None) -> Table | None:
    """Return a table of names and values; None if there are none."""
    rows = [
        [key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for key, value in (facts or {}).items()
    ]
    return Table(caption, ["name", "value"], rows, "long") if rows else None


def run_tables(run: Mapping[str, Any]) -> list[Table]:
    """Return the contents of a run's config.json, or of metrics.json's `training`."""
    facts = {key: run[key] for key in ("commit", "aspect", "best") if key in run}
    found = [
        fact_table("Training", facts),
        fact_table("Flags of train.py", run.get("config")),
        fact_table("Resolved settings", run.get("resolved")),
        fact_table("Environment of the training", run.get("environment")),
        fact_table("SHA-256 of the names and labels in each split", run.get("fingerprints")),
    ]
    return [table for table in found if table is not None]


# ----------------------------------------------------------------------------- photos


def choose_photos(results: Results, seed: int = 0) -> dict[str, list[int]]:
    """Return the photos to show, by heading: random ones, then each task's most confident errors.

    Args:
        results: of the evaluation.
        seed: of the random choice.
    """
    n_photos, correct = len(results.predictions), results.correct()
    drawn = np.random.default_rng(seed).permutation(n_photos)[:PHOTO_COLUMNS]
    chosen = {"Random photos": sorted(drawn.tolist())}
    for task in results.tasks:
        errors = results.predictions.loc[correct[task] == 0, f"{task}_prob"]
        order = errors.sort_values(ascending=False, kind="stable").index[:PHOTO_COLUMNS]
        chosen[f"Most confident errors: {name_of(task)}"] = order.tolist()
    return chosen


class TaskPrediction(NamedTuple):
    """A task's prediction for one photo, as text."""

    task: str
    predicted: str
    probability: str
    true: str
    correct: bool

    @property
    def text(self) -> str:
        """Task, predicted class and probability, and after an error the true class."""
        text = f"{self.task}: {self.predicted} ({self.probability})"
        return text if self.correct else f"{text}, true: {self.true}"


def predictions_of(results: Results, photo: int) -> list[TaskPrediction]:
    """Return the predictions for a photo, of the tasks whose class is known."""
    row = results.predictions.iloc[photo]
    return [
        TaskPrediction(
            name_of(task),
            row[f"{task}_pred"],
            f"{PERCENT.scale * row[f'{task}_prob']:.0f}{PERCENT.suffix}",
            row[f"{task}_true"],
            row[f"{task}_true"] == row[f"{task}_pred"],
        )
        for task in results.tasks
        if results.known(task)[photo]
    ]


class Photo(NamedTuple):
    """A photo of the report: file name, picture, predictions."""

    name: str
    picture: Image.Image
    predictions: list[TaskPrediction]

    @property
    def source(self) -> str:
        """A small JPEG as a data URI."""
        buffer = io.BytesIO()
        self.small.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return data_uri(buffer.getvalue(), "jpeg")

    @property
    def small(self) -> Image.Image:
        """The picture at `PHOTO_SIZE`."""
        return ImageOps.contain(self.picture, (PHOTO_SIZE, PHOTO_SIZE))

    @property
    def alt(self) -> str:
        """File name and predictions."""
        texts = [f"{p.text}, {'correct' if p.correct else 'wrong'}" for p in self.predictions]
        return f"Hand photo {self.name}: {'; '.join(texts)}"

    @property
    def panel(self) -> PhotoPanel:
        """The photo for sample_grid.png, where the true class has a line of its own."""
        lines = []
        for p in self.predictions:
            mark = "✓" if p.correct else "✗"
            lines.append((f"{mark} {p.task}: {p.predicted} ({p.probability})", p.correct))
            lines += [] if p.correct else [(f"    true: {p.true}", False)]
        return PhotoPanel(self.picture, lines)


def read_photos(results: Results, folder: Path) -> dict[str, list[Photo]]:
    """Return the photos to show, by heading.

    Raises:
        UserError: a photo is missing or cannot be decoded.
    """
    names = photo_names(results.predictions["image_path"]).tolist()

    def read(photo: int) -> Photo:
        try:
            picture = open_photo(folder / names[photo], decode_size=GRID_PHOTO_SIZE)
        except UserError as error:
            raise UserError(f"{error}; or give --photos DIR or --no_photos") from error
        picture.thumbnail((GRID_PHOTO_SIZE, GRID_PHOTO_SIZE))
        return Photo(names[photo], picture, predictions_of(results, photo))

    chosen = choose_photos(results).items()
    return {heading: [read(photo) for photo in photos] for heading, photos in chosen}


# ----------------------------------------------------------------------------- pages


def class_charts(results: Results) -> dict[str, list[Chart]]:
    """Return the charts of classified tasks: confusion (in the order of the tasks), cmc, ..."""
    found: dict[str, list[Chart]] = {"confusion": [], "cmc": [], "reliability": [], "age": []}
    for task in results.tasks:
        predicted = class_predictions(results.arrays, task)
        names = results.arrays[f"{task}_classes"].tolist()
        known, block = results.predictions[results.known(task)], results.metrics["tasks"][task]
        found["confusion"].append(charts.confusion_chart(known, task, names))
        if predicted.classes_are_people:
            found["cmc"].append(charts.rank_curve(predicted))
        found["reliability"].append(charts.reliability_chart(task, predicted, block))
        if TASKS[task].in_years and (chart := charts.age_chart(predicted, names)):
            found["age"].append(chart)
    return found


def report_charts(results: Results) -> dict[str, list[Chart]]:
    """Return all charts of a report, by section."""
    metrics_tasks = results.metrics["tasks"]
    pairs = wording.pairs_of(metrics_tasks)
    found = class_charts(results)
    of_pairs = charts.pair_charts(results.arrays) if pairs else {}
    for section in ("cmc", "det", "ratios"):
        found[section] = found.get(section, []) + of_pairs.get(section, [])
    kinds = {kind: pairs[kind] for kind in PAIR_KINDS if pairs.get(kind)}
    found["cmc"] += charts.gallery_charts(kinds)
    blocks = {task: metrics_tasks[task] for task in results.tasks} | kinds
    found["headlines"] = charts.headline_charts(wording.headlines(metrics_tasks))
    found["groups"] = [
        chart for key, block in blocks.items() for chart in charts.group_charts(key, block)
    ]
    accuracy = results.correct().groupby(results.arrays["people"]).mean()
    found["people"] = [charts.people_chart(accuracy)] if results.tasks else []
    return found


def training_context(run_dir: Path) -> list[Chart]:
    """Return the training curves of a run; none without a finished epoch."""
    epochs = read_epochs(run_dir)
    return charts.training_charts(epochs, best_epoch(run_dir)) if epochs else []


def report_context(
    results: Results, photos: Mapping[str, Sequence[Photo]] | None
) -> dict[str, Any]:
    """Return what report.html.j2 prints: sentences, tables, charts, photos."""
    metrics = results.metrics
    metrics_tasks, pairs = metrics["tasks"], wording.pairs_of(metrics["tasks"])
    kinds = {kind: pairs[kind] for kind in PAIR_KINDS if pairs.get(kind)}
    lines = wording.headlines(metrics_tasks)
    worst, everybody = people_tables(results)
    return {
        "title": f"Hands: {metrics['aspect']}, {metrics['split']}, protocol {metrics['protocol']}",
        "description": wording.describe_evaluation(metrics),
        "summary": wording.summary(lines),
        "protocol_reason": metrics.get("protocol_reason"),
        "warnings": wording.warnings(metrics),
        "headlines": [(line, capitalize(line.name), wording.verdict(line)) for line in lines],
        "casework": wording.CASEWORK,
        "explain_baselines": wording.explain_baselines(wording.is_unseen(metrics)),
        "baselines": baseline_tables(lines),
        "leakage": leakage_table(metrics),
        "task_measures": measure_table(
            "All measures of classification", {task: metrics_tasks[task] for task in results.tasks}
        )
        if results.tasks
        else None,
        "few_people": FEW_PEOPLE,
        "class_tables": class_tables(metrics_tasks),
        "pair_measures": measure_table("All measures of pairs of photos", kinds) if kinds else None,
        "charts": report_charts(results),
        "differentials": differential_tables(metrics_tasks),
        "worst": worst,
        "everybody": everybody,
        "photos": photos,
        "terms": wording.terms(metrics_tasks),
        **reproducibility_context(metrics),
    }


def reproducibility_context(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the section Reproducibility prints."""
    elsewhere = ("tasks", "environment", "training", "leakage", "command", "protocol_reason")
    facts = {key: value for key, value in metrics.items() if key not in elsewhere}
    environment = metrics.get("environment")
    return {
        "command": metrics.get("command"),
        "evaluation": fact_table("Evaluation", facts),
        "environment": fact_table("Environment of the evaluation", environment),
        "run": run_tables(metrics.get("training") or {}),
    }


def write_report(folder: Path, *, photos: Path | None, why_none: str = "") -> Path:
    """Write report.html, confusion_<task>.png and sample_grid.png of an evaluation.

    Args:
        folder: with metrics.json, predictions.csv and predictions.npz.
        photos: folder of the photos that predictions.csv names; None: show no photo.
        why_none: the reason that the report then gives; default: `NO_PHOTOS`.

    Returns:
        The path of report.html.

    Raises:
        UserError: a file is missing, damaged, or cannot be written.
    """
    results = read_results(folder)
    shown = None if photos is None else read_photos(results, photos)
    context = report_context(results, shown)
    for task, chart in zip(results.tasks, context["charts"]["confusion"], strict=True):
        save_figure(chart.figure, folder / f"confusion_{task}.png")
    if shown is not None:
        panels = {heading: [p.panel for p in found] for heading, found in shown.items()}
        save_figure(draw_photos(panels), folder / "sample_grid.png", dpi=100)
    else:
        (folder / "sample_grid.png").unlink(missing_ok=True)  # of an earlier report with photos
    context["why_none"] = why_none or NO_PHOTOS
    context["training"] = training_context(folder.parent)
    return write_page(folder / "report.html", "report.html.j2", context)


def write_training_report(run_dir: Path) -> Path:
    """Write training.html into the folder of a run; return its path.

    Raises:
        UserError: metrics.jsonl or config.json is missing or damaged, or the page cannot be
            written.
    """
    run, epochs = read_run(run_dir), read_epochs(run_dir)
    if not epochs:
        raise UserError(f"no finished epoch: {run_dir / 'metrics.jsonl'}. Train first")
    best = best_epoch(run_dir)
    config = run["config"]
    context = {
        "title": f"Training: {run_dir.resolve().name}",
        "description": f"{epochs[-1]['epoch']} epochs of {config.get('backbone')}, aspect"
        f" {run.get('aspect')}, protocol {config.get('protocol')}.",
        "best": best,
        "scores": next((score_table(r) for r in epochs if r["epoch"] == best), None),
        "charts": charts.training_charts(epochs, best),
        "run": run_tables(run),
    }
    return write_page(run_dir / "training.html", "training.html.j2", context)


def score_table(epoch: Mapping[str, Any]) -> Table:
    """Return the validation scores in a line of metrics.jsonl."""
    keys = {
        f"{name_of(task)}: {measure.name}": (f"val_{measure.key}_{task}", measure)
        for task in TASKS
        for measure in MEASURES.values()
    }
    keys |= {f"unseen people: {m.name}": (f"val_{m.key}", m) for m in MEASURES.values()}
    rows = [
        [name, measure.unit.format(epoch[key])]
        for name, (key, measure) in keys.items()
        if epoch.get(key) is not None
    ]
    return Table(f"Epoch {epoch['epoch']} on val", ["", "score"], rows)


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> Path:
    """Write a page atomically; return its path."""
    write_text(path, templates().get_template(template).render(context))
    return path
