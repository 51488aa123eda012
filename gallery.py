r"""Enroll known hands in a gallery, search them for a hand, and compare two hands.

    python gallery.py enroll hands.sqlite people/ --checkpoint ./checkpoints/<run>/<checkpoint>.pth
    python gallery.py search hands.sqlite photo.jpg --html sheet.html
    python gallery.py verify hands.sqlite photo.jpg anna
    python gallery.py list hands.sqlite
    python gallery.py remove hands.sqlite anna

`enroll` takes a folder with a subfolder per person, or a CSV with the columns image_path,id. The
photos of a search show one hand; a CSV with the columns image_path,hand searches for several. Each
side of `verify` is an enrolled person, a photo or a folder. Results are JSON lines.
A gallery is one SQLite file with biometric data: embeddings, names, paths and hashes, no photos.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.gallery_file import ROWS_PER_CHUNK, Entry, Gallery, search, sqlite_errors
from data.tables import Rule, check_cells, read_csv
from dataset_11k import open_photo
from engine.explain import Explainer, load_grad_cam
from measures.comparison import fuse, support_of
from measures.pairs import cosine_similarity
from pages.build import NO_PHOTOS, PHOTO_SIZE, Photo, Results, read_results, write_page
from pages.charts import Table
from pages.wording import CASEWORK
from predict import (
    MAP_NUMBERS,
    Hand,
    HandPredictor,
    LoadingConfig,
    find_photos,
    read_hands,
    report_failures,
    search_folder,
    write_explanations,
    write_table,
)
from utils import UserError, build_config, build_parser, flag, one_line_errors, setup_logging


@dataclass(frozen=True)
class GalleryConfig(LoadingConfig):
    """Flags of gallery.py."""

    command: str
    gallery: Path
    inputs: tuple[str, ...]
    checkpoint: Path | None = flag(None, "checkpoint (default: that of the first enrolment)")
    top_k: int = flag(5, "search: people to print, the most similar first")
    html: Path | None = flag(None, "search, verify: result sheet to print")
    show_photos: bool = flag(False, "embed the photos (biometric data) in the result sheet")
    explain: Path | None = flag(
        None, "verify: folder for maps of what influences the similarity", metavar="DIR"
    )
    audit: bool = flag(False, "list: the audit trail, instead of the people")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        least, most = {"list": (0, 0), "verify": (2, 2)}.get(self.command, (1, math.inf))
        if not least <= len(self.inputs) <= most:
            wanted = least if least == most else f"at least {least}"
            raise ValueError(f"{self.command} takes {wanted} inputs, not {len(self.inputs)}")
        if self.top_k < 1:
            raise ValueError("--top_k must be above 0")


# ----------------------------------------------------------------------------- photos


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; empty if it cannot be read, which the reader will report."""
    with suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def find_people(source: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the photos of each person, and a message per file that is not a person's photo.

    Args:
        source: a folder with a subfolder per person, or a CSV with the columns image_path,id, whose
            paths are relative to it or to the current folder.

    Raises:
        UserError: it is neither.
    """
    if source.is_dir():
        people, failures = {}, []
        for folder in sorted(source.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                people[folder.name], messages = search_folder(folder, [])
                failures += messages
            elif not folder.name.startswith("."):
                failures.append(f"not in the folder of a person: {folder}")
        if not people:
            failures.append(f"no folder of a person: {source}")
        return people, failures
    what = "Give a folder with a subfolder per person, or a CSV with the columns image_path,id"
    table = read_csv(source, ("image_path", "id"), what)
    ids = table["id"].str.strip()
    check_cells(table, source, {"id": Rule(ids != "", "the name of a person")})
    found: dict[str, list[Path]] = {}
    for name, photo in zip(ids, map(Path, table["image_path"]), strict=True):
        beside = source.parent / photo
        found.setdefault(name, []).append(beside if beside.exists() else photo)
    return found, []


class Probe(NamedTuple):
    """A hand to compare: its photos, with hashes and embeddings (n, D), and warnings about them.

    person: id if it is enrolled.
    """

    name: str
    paths: list[Path]
    hashes: list[str]
    embeddings: np.ndarray
    warnings: list[str]
    person: int | None = None


def embed(predictor: HandPredictor, hand: Hand, num_workers: int) -> tuple[Probe, list[str]]:
    """Return the photos of a hand that can be read, and a message per other photo."""
    paths, embeddings, warnings, failures = [], [], [], []
    for predicted in predictor.predict_hands(
        [Hand([p]) for p in hand.photos], num_workers=num_workers
    ):
        failures += predicted.failures
        if predicted.prediction is not None:
            paths.append(Path(str(predicted.photos[0])))
            embeddings.append(predicted.prediction.embedding)
            warnings += [f"{predicted.photos[0]}: {text}" for text in predicted.prediction.warnings]
    if not paths:
        raise UserError("; ".join(failures) or f"no photo of {hand.name or 'a hand'}")
    found = np.stack(embeddings)
    return Probe(hand.name, paths, [digest(p) for p in paths], found, warnings), failures


# ----------------------------------------------------------------------------- commands


class Session(NamedTuple):
    """What the commands share."""

    config: GalleryConfig
    gallery: Gallery
    predictor: HandPredictor
    checkpoint: Path


def open_session(config: GalleryConfig, *, create: bool = False) -> Session:
    """Return gallery and model; refuse a model that did not make the gallery's embeddings."""
    stored = None
    if config.gallery.is_file() or not create:  # a damaged file is reported before the work begins
        stored = Gallery(config.gallery, create=create).model()
    checkpoint = config.checkpoint or (stored and stored[1])
    if checkpoint is None:
        raise UserError(f"nobody is enrolled: {config.gallery}. Give --checkpoint to enroll")
    if not checkpoint.is_file():
        raise UserError(f"checkpoint not found: {checkpoint}. Give --checkpoint if it has moved")
    predictor = config.load(checkpoint)
    gallery = Gallery(config.gallery, create=create)
    gallery.set_model(predictor.fingerprint, checkpoint)
    return Session(config, gallery, predictor, checkpoint)


def run_enroll(config: GalleryConfig) -> int:
    """Enroll people, each in one transaction, and print a line for each."""
    people: dict[str, list[Path]] = {}
    failures = []
    for source in config.inputs:
        found, messages = find_people(Path(source))
        failures += messages
        for name, photos in found.items():
            people.setdefault(name, []).extend(photos)
    session = open_session(config, create=True)
    hands, hashes = [], {}
    for name, photos in people.items():
        for path in photos:
            hashes[path] = digest(path)
            reason = session.gallery.why_not(name, path, hashes[path])
            if reason is None:
                hands.append(Hand([path], name))
            failures += [reason] if reason else []
    report_failures(failures)
    predictions = session.predictor.predict_hands(hands, num_workers=config.num_workers)
    shown = tqdm(predictions, "enroll", len(hands), leave=False, disable=None, unit="photo")
    for name, group in itertools.groupby(shown, key=lambda predicted: predicted.hand.name):
        entries = []
        for predicted in group:
            report_failures(predicted.failures)
            failures += predicted.failures
            if predicted.prediction is not None:
                path = Path(str(predicted.photos[0]))
                entries.append(Entry(path, hashes[path], predicted.prediction.embedding))
                for text in predicted.prediction.warnings:
                    print(f"warning: {path}: {text}", file=sys.stderr)
        n_new = session.gallery.enroll(name, entries)
        print_json({"person": name, "photos_enrolled": n_new})
    n_people, n_photos = len(session.gallery.people()), session.gallery.n_photos()
    print_json({"people": n_people, "photos": n_photos})
    return 1 if failures else 0


def read_probes(session: Session) -> tuple[list[Probe], list[str]]:
    """Return the hands to search for, and a message per photo that cannot be read."""
    inputs = session.config.inputs
    tables = [text for text in inputs if text.lower().endswith(".csv")]
    photos, failures = find_photos([text for text in inputs if text not in tables], [])
    hands = [hand for text in tables for hand in read_hands(Path(text))]
    hands += [Hand(photos)] if photos else []
    found = [embed(session.predictor, hand, session.config.num_workers) for hand in hands]
    failures += [text for _, texts in found for text in texts]
    return [probe for probe, _ in found], failures


def search_hands(session: Session, probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """Return a record for each hand, as `search` prints it, and extend the audit trail."""
    gallery, threshold = session.gallery, session.predictor.threshold
    vectors, records = np.stack([fuse(probe.embeddings) for probe in probes]), []
    with gallery.change():  # nobody is enrolled or removed meanwhile
        names, n_chunks = gallery.people(), -(-gallery.n_photos() // ROWS_PER_CHUNK)
        if not names:
            raise UserError(f"nobody is enrolled: {gallery.path}. Enroll people first")
        unit: dict[str, Any] = {"unit": "photo", "unit_scale": ROWS_PER_CHUNK}
        chunks = tqdm(gallery.chunks(), "search", n_chunks, leave=False, disable=None, **unit)
        similarity = search(chunks, vectors, max(names) + 1)
        for probe, vector, scores in zip(probes, vectors, similarity, strict=True):
            candidates: list[dict[str, Any]] = []
            warnings = list(probe.warnings)
            ranking = np.argsort(-scores, kind="stable").tolist()
            for person in ranking[: min(session.config.top_k, len(names))]:
                photos = gallery.photos(person)
                nearest = photos[int(np.argmax([p.embedding @ vector for p in photos]))]
                candidates.append({"person": names[person], "similarity": float(scores[person])})
                candidates[-1]["photo"] = str(nearest.path)
                if nearest.sha256 in probe.hashes:
                    warnings.append(f"this photo is enrolled, as {names[person]}: {nearest.path}")
            top = candidates[0]["similarity"]
            gallery.record("search", photos=probe.hashes, candidate=ranking[0], similarity=top)
            records.append(
                {
                    "hand": probe.name,
                    "photos": list(map(str, probe.paths)),
                    "unknown": None if threshold is None else top <= threshold,
                    "threshold": threshold,
                    "fpir": session.config.fpir,
                    "people": len(names),
                    "candidates": candidates,
                    "warnings": warnings,
                }
            )
    return records


def run_search(config: GalleryConfig) -> int:
    """Rank the enrolled people by similarity to each hand."""
    session = open_session(config)
    probes, failures = read_probes(session)
    report_failures(failures)
    records = search_hands(session, probes) if probes else []
    for record in records:
        print_json(record)
    if config.html and records:
        sections = list(map(search_section, records, probes))
        write_sheet(session, "Search in a gallery", sections)
    return 1 if failures else 0


def find_side(session: Session, text: str) -> Probe:
    """Return one side of a comparison: an enrolled person, else a photo or a folder."""
    person = session.gallery.person(text)
    if person is not None:
        photos = session.gallery.photos(person)
        embeddings = np.stack([photo.embedding for photo in photos])
        paths, hashes = [p.path for p in photos], [p.sha256 for p in photos]
        return Probe(text, paths, hashes, embeddings, [], person)
    if not Path(text).exists():
        raise UserError(f"neither an enrolled person nor a photo: {text}. See gallery.py list")
    paths_found, failures = find_photos([text], [])
    probe, messages = embed(session.predictor, Hand(paths_found, text), session.config.num_workers)
    if failures or messages:
        raise UserError("; ".join([*failures, *messages]))
    return probe


def compare(checkpoint: Path, sides: Sequence[Probe]) -> dict[str, Any]:
    """Return the record that `verify` prints.

    Raises:
        UserError: both show the same photo.
    """
    first, second = sides
    if set(first.hashes) & set(second.hashes):
        raise UserError(f"the same photo on both sides: {first.name}, {second.name}. Remove it")
    vectors = (fuse(side.embeddings).astype(np.float64)[None] for side in sides)
    return {
        "first": {"name": first.name, "photos": list(map(str, first.paths))},
        "second": {"name": second.name, "photos": list(map(str, second.paths))},
        "similarity": cosine_similarity(*vectors).item(),
        **likelihood_ratio(checkpoint, sides),
        "warnings": [*first.warnings, *second.warnings],
    }


def run_verify(config: GalleryConfig) -> int:
    """Compare two hands: similarity, likelihood ratio and words."""
    if config.explain:  # refuse before the work
        load_grad_cam()
        if config.explain.is_file():
            raise UserError(f"a file, not a folder: {config.explain}. Choose another folder")
    session = open_session(config)
    sides = [find_side(session, text) for text in config.inputs]
    record = compare(session.checkpoint, sides)
    ends = [side.hashes if side.person is None else side.person for side in sides]
    with session.gallery.change():
        session.gallery.record("verify", sides=ends, similarity=record["similarity"])
    print_json(record)
    if config.html:
        write_sheet(session, "Comparison of two hands", [verify_section(record, sides)])
    if config.explain:
        write_maps(session.predictor, sides, config.explain)
    return 0


def write_maps(predictor: HandPredictor, sides: Sequence[Probe], folder: Path) -> None:
    """Write a map for each photo of its similarity to the hand on the other side.

    Raises:
        UserError: an enrolled photo has changed; then nothing is written.
    """
    for side in sides:
        for path, sha256 in zip(side.paths, side.hashes, strict=True):
            if digest(path) != sha256:
                raise UserError(f"no map: changed since its enrolment: {path}. Restore it")
    explainer, maps, titles, rows = Explainer(predictor.predictor), {}, {}, []
    for number, (side, other) in enumerate((sides, sides[::-1]), 1):
        for i, path in enumerate(side.paths, 1):
            name = f"{number}_{i}"
            maps[name] = explainer.explain_similarity(path, fuse(other.embeddings))
            titles[name] = path.name
            numbers = {key: getattr(maps[name], key) for key in MAP_NUMBERS}
            rows.append({"photo": str(path), "map": name, "compared_with": other.name, **numbers})
    write_explanations(maps, titles, folder / "similarity")
    write_table(folder / "maps.csv", rows)


def find_calibration(checkpoint: Path) -> Results | None:
    """Return test.py's results on unseen people, beside the checkpoint; None: there are none."""
    for folder in sorted(checkpoint.parent.glob(f"{checkpoint.stem}-*-test")):
        results = read_results(folder)
        if "galleries" in results.arrays:
            return results
    return None


def likelihood_ratio(checkpoint: Path, sides: Sequence[Probe]) -> dict[str, Any]:
    """Return the fields of the likelihood ratio, or null values and the reason."""
    found = dict.fromkeys(("log10_likelihood_ratio", "likelihood_ratio", "bounds", "support"))
    results = find_calibration(checkpoint)
    if results is None:
        why = (
            "no likelihood ratio: test.py has not evaluated this checkpoint on unseen people. Train"
            " with --protocol subject-disjoint and evaluate on test"
        )
        return {**found, "calibration": why}
    arrays, metrics = results.arrays, results.metrics
    first, second = (side.embeddings for side in sides)
    support = support_of(first, second, arrays["embedding"], arrays["people"])
    counts = " with ".join(str(len(side.paths)) for side in sides)
    where = f"{metrics['aspect']}, {metrics['split']} of protocol {metrics['protocol']}"
    if support is None:
        why = (
            f"no likelihood ratio: {where} has too few photos or people to calibrate comparisons of"
            f" {counts} photos. Give fewer photos"
        )
        return {**found, "calibration": why}
    left_out = f", without the blocks of {' and '.join(support.left_out)}"
    return {
        "log10_likelihood_ratio": support.log10_ratio,
        "likelihood_ratio": 10**support.log10_ratio,
        "bounds": [10**bound for bound in support.bounds],
        "support": support.words,
        "calibration": f"{support.n_pairs} comparisons of {counts} photos of {support.n_people}"
        f" unseen people ({where}{left_out if support.left_out else ''}). {CASEWORK}",
    }


def run_list(config: GalleryConfig) -> int:
    """Print the people with their numbers of photos, or the audit trail."""
    db = Gallery(config.gallery).db
    if config.audit:
        for number, time, action, details in db.execute("SELECT * FROM audit ORDER BY id"):
            print_json({"id": number, "time": time, "action": action, **json.loads(details)})
        return 0
    counts = "SELECT person.id, name, COUNT(*) FROM person JOIN photo ON person = person.id"
    for person, name, n_photos in db.execute(f"{counts} GROUP BY person.id ORDER BY name"):
        print_json({"person": name, "id": person, "photos": n_photos})
    return 0


def run_remove(config: GalleryConfig) -> int:
    """Remove people; only their ids stay, in the audit trail."""
    n_photos = Gallery(config.gallery).remove(config.inputs)
    print_json({"people_removed": len(config.inputs), "photos_removed": n_photos})
    return 0


# ----------------------------------------------------------------------------- output


def print_json(record: Any) -> None:
    """Print a line of JSON at once, in ASCII, which every console can show."""
    print(json.dumps(record), flush=True)


def photo_table(probes: Sequence[Probe]) -> Table:
    """Return the photos that were compared."""
    rows = [
        [probe.name or "searched for", str(path), sha256]
        for probe in probes
        for path, sha256 in zip(probe.paths, probe.hashes, strict=True)
    ]
    return Table("Photos", ["hand", "photo", "SHA-256"], rows, "long")


def search_section(record: Any, probe: Probe) -> dict[str, Any]:
    """Return what the result sheet shows of a search."""
    verdict = {
        None: "Whether the person is enrolled was not decided: the threshold is unknown.",
        True: "The person is probably not enrolled: nobody is more similar than the threshold"
        " {threshold:.3f} (FPIR {fpir:g}).",
        False: "At least one enrolled person is more similar than the threshold {threshold:.3f}"
        " (FPIR {fpir:g}).",
    }[record["unknown"]]
    rows = [
        [str(rank), found["person"], f"{found['similarity']:.4f}", found["photo"]]
        for rank, found in enumerate(record["candidates"], 1)
    ]
    header = ["rank", "person", "cosine similarity", "most similar photo"]
    return {
        "title": f"Hand {record['hand']}".strip() if record["hand"] else "Candidates",
        "lead": verdict.format(**record),
        "notes": ["A rank is no proof of identity: compare with verify for the evidence."],
        "tables": [Table(f"Among {record['people']} people", header, rows, "long")]
        + [photo_table([probe])],
        "photos": [*probe.paths, *(Path(found["photo"]) for found in record["candidates"])],
        "warnings": record["warnings"],
    }


def verify_section(record: Any, sides: Sequence[Probe]) -> dict[str, Any]:
    """Return what the result sheet shows of a comparison."""
    rows = [["cosine similarity", f"{record['similarity']:.4f}"]]
    if record["support"]:
        low, high = record["bounds"]
        is_bound = np.isclose(record["likelihood_ratio"], record["bounds"]).any()
        bound = " (a bound: the photos of the calibration support no stronger value)"
        rows += [
            ["likelihood ratio", f"{record['likelihood_ratio']:.3g}{bound if is_bound else ''}"],
            ["bounds of the likelihood ratio", f"{low:.3g} to {high:.3g}"],
            ["in words (ENFSI 2015)", record["support"]],
        ]
    return {
        "title": "Result",
        "lead": f"{sides[0].name} and {sides[1].name}: {record['support'] or 'similarity only'}.",
        "notes": [record["calibration"]],
        "tables": [Table("Comparison", ["", "value"], rows, "long"), photo_table(sides)],
        "photos": [path for side in sides for path in side.paths],
        "warnings": record["warnings"],
    }


def read_photos(paths: Sequence[Path]) -> list[Photo]:
    """Return the photos to show; what was deleted since its enrolment is left out."""
    found = [path for path in paths if path.exists()]
    return [Photo(str(path), open_photo(path, decode_size=PHOTO_SIZE), []) for path in found]


def write_sheet(session: Session, title: str, results: Sequence[dict[str, Any]]) -> None:
    """Write the result sheet, with photos only if asked."""
    config, gallery = session.config, session.gallery
    assert config.html is not None
    for result in results:
        result["photos"] = read_photos(result["photos"]) if config.show_photos else []
    facts = [
        ["time (UTC)", datetime.now(UTC).isoformat(timespec="seconds")],
        ["gallery", str(gallery.path.resolve())],
        ["enrolled", f"{gallery.n_photos()} photos of {len(gallery.people())} people"],
        ["checkpoint", str(session.checkpoint)],
        ["SHA-256 of the weights", session.predictor.fingerprint],
    ]
    table = Table("What the result depends on", ["name", "value"], facts, "long")
    context = {"title": title, "results": results, "facts": table, "why_none": NO_PHOTOS}
    print(f"wrote {write_page(config.html, 'gallery.html.j2', context)}", file=sys.stderr)


COMMANDS = {
    "enroll": run_enroll,
    "search": run_search,
    "verify": run_verify,
    "list": run_list,
    "remove": run_remove,
}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = build_parser(GalleryConfig, __doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("gallery", type=Path, help="SQLite file")
    parser.add_argument(
        "inputs", nargs="*", default=[], help="people, photos or names, as shown above"
    )
    config = build_config(parser, GalleryConfig, vars(parser.parse_args(argv)))
    setup_logging()
    with sqlite_errors(config.gallery):
        return COMMANDS[config.command](config)


if __name__ == "__main__":
    sys.exit(main())
