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
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.tables import Rule, check_cells, read_csv
from dataset_11k import open_photo
from engine import loop
from measures.comparison import fuse, support_of
from measures.pairs import cosine_similarity
from pages.build import NO_PHOTOS, PHOTO_SIZE, Photo, Results, read_results, write_page
from pages.charts import Table
from pages.wording import CASEWORK
from predict import (
    DEFAULT_FPIR,
    Hand,
    HandPredictor,
    find_photos,
    load_predictor,
    read_hands,
    report_failures,
    search_folder,
)
from utils import (
    AMP_MODES,
    DEVICES,
    UserError,
    build_config,
    build_parser,
    flag,
    one_line_errors,
    setup_logging,
    usable_cpus,
)

N_INPUTS = {"enroll": (1, None), "search": (1, None), "verify": (2, 2), "list": (0, 0)}
N_INPUTS |= {"remove": (1, None)}  # command -> least and largest number of inputs

APPLICATION_ID = 0x49474145  # marks the SQLite files that are galleries

# Names stand in `person` alone, so that the audit trail outlives a removal; ids are not reused.
SCHEMA = (
    "CREATE TABLE model (fingerprint TEXT NOT NULL, checkpoint BLOB NOT NULL)",
    "CREATE TABLE person (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE photo (id INTEGER PRIMARY KEY, person INTEGER NOT NULL REFERENCES person,"
    " path BLOB NOT NULL, sha256 TEXT NOT NULL UNIQUE, embedding BLOB NOT NULL)",
    "CREATE INDEX photo_person ON photo (person)",
    "CREATE INDEX photo_path ON photo (path)",
    "CREATE TABLE audit (id INTEGER PRIMARY KEY, time TEXT NOT NULL, action TEXT NOT NULL,"
    " details TEXT NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
)

PAGE_SIZE = 65536  # bytes; embeddings beyond a page would be read in pieces
ROWS_PER_CHUNK = 256  # about 1 MB; larger chunks are slower, as they leave the processor's cache
BUSY_SECONDS = 60  # to wait for another process that writes


@dataclass(frozen=True)
class GalleryConfig:
    """Flags of gallery.py."""

    command: str
    gallery: Path
    inputs: tuple[str, ...]
    checkpoint: Path | None = flag(None, "checkpoint (default: that of the first enrolment)")
    top_k: int = flag(5, "search: people to print, the most similar first")
    fpir: float = flag(
        DEFAULT_FPIR, "search: false-positive identification rate at which a person is unknown"
    )
    html: Path | None = flag(None, "search, verify: result sheet to print")
    show_photos: bool = flag(False, "embed the photos (biometric data) in the result sheet")
    audit: bool = flag(False, "list: what was done with the gallery, instead of its people")
    attributes_file: Path | None = flag(None, "CSV of the training, if it has moved")
    batch_size: int | None = flag(None, f"photos per forward pass ({loop.BATCH_SIZE_HELP})")
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "auto: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(None, "mixed precision (default: as in training)", choices=AMP_MODES)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        least, most = N_INPUTS[self.command]
        if not least <= len(self.inputs) <= (most or len(self.inputs)) or (
            most == 0 and self.inputs
        ):
            wanted = least if least == most else f"at least {least}"
            raise ValueError(f"{self.command} takes {wanted} inputs, not {len(self.inputs)}")
        if self.top_k < 1:
            raise ValueError("--top_k must be above 0")
        if not 0 < self.fpir < 1:
            raise ValueError("--fpir must be between 0 and 1")
        loop.check_loading(self.batch_size, self.num_workers)


# ----------------------------------------------------------------------------- the gallery


class Chunk(NamedTuple):
    """Some enrolled photos: (n,) ids of their people, (n, D) float32 embeddings of unit length."""

    people: np.ndarray
    embeddings: np.ndarray


class Entry(NamedTuple):
    """A photo to enroll; the embedding, (D,), may have any length."""

    path: Path
    sha256: str
    embedding: np.ndarray


class Gallery:
    """People, photos and their embeddings in a SQLite file; every change is one transaction."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if not create and not path.is_file():
            raise UserError(f"no such gallery: {path}. Enroll people first: gallery.py enroll")
        self.path = path
        self.db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        self.db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        self.db.execute("PRAGMA secure_delete = ON")
        self.db.execute("PRAGMA foreign_keys = ON")
        if create and not self._is_gallery():
            with self.change():
                if not self.db.execute("SELECT 1 FROM sqlite_master").fetchone():
                    for statement in SCHEMA:
                        self.db.execute(statement)
        if not self._is_gallery():
            raise UserError(f"not a gallery: {path}. Give a file that gallery.py enroll made")

    def _is_gallery(self) -> bool:
        """Return whether the file has the tables of a gallery."""
        return bool(self.db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)

    @contextmanager
    def change(self) -> Iterator[None]:
        """Make the block one transaction, after those of other processes."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def record(self, action: str, **details: Any) -> None:
        """Append to the audit trail; people are named by their ids, photos by their hashes."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = (now, action, json.dumps(details))
        self.db.execute("INSERT INTO audit (time, action, details) VALUES (?, ?, ?)", row)

    def model(self) -> tuple[str, Path] | None:
        """Return fingerprint and checkpoint of the embeddings' model; None: nobody enrolled yet."""
        row = self.db.execute("SELECT fingerprint, checkpoint FROM model").fetchone()
        return row and (row[0], Path(os.fsdecode(row[1])))

    def set_model(self, fingerprint: str, checkpoint: Path) -> None:
        """Store the model of a new gallery.

        Raises:
            UserError: the gallery's embeddings are of another model.
        """
        with self.change():
            if self.model() is None:
                row = fingerprint, os.fsencode(checkpoint.resolve())
                self.db.execute("INSERT INTO model VALUES (?, ?)", row)
        stored = self.model()
        if stored and stored[0] != fingerprint:
            raise UserError(
                f"{checkpoint} is not the model of the gallery's embeddings: {self.path}. Give"
                f" --checkpoint {stored[1]}, or enroll into another gallery"
            )

    def people(self) -> dict[int, str]:
        """Return the name of each person, by id."""
        return dict(self.db.execute("SELECT id, name FROM person ORDER BY id"))

    def person(self, name: str) -> int | None:
        """Return the id of a person; None: not enrolled."""
        row = self.db.execute("SELECT id FROM person WHERE name = ?", (name,)).fetchone()
        return row and row[0]

    def photos(self, person: int) -> list[Entry]:
        """Return the enrolled photos of a person."""
        rows = self.db.execute(
            "SELECT path, sha256, embedding FROM photo WHERE person = ? ORDER BY id", (person,)
        )
        return [
            Entry(Path(os.fsdecode(path)), sha256, np.frombuffer(embedding, np.float32))
            for path, sha256, embedding in rows
        ]

    def n_photos(self) -> int:
        """Return the number of enrolled photos."""
        return int(self.db.execute("SELECT COUNT(*) FROM photo").fetchone()[0])

    def why_not(self, name: str, path: Path, sha256: str) -> str | None:
        """Return why a photo need not (empty) or cannot be enrolled; None: it can."""
        row = self.db.execute(
            "SELECT name FROM photo JOIN person ON person.id = person WHERE sha256 = ?", (sha256,)
        ).fetchone()
        if row:
            return "" if row[0] == name else f"already enrolled as {row[0]}, not {name}: {path}"
        stored = os.fsencode(path.resolve())
        if self.db.execute("SELECT 1 FROM photo WHERE path = ?", (stored,)).fetchone():
            return f"changed since its enrolment: {path}. Remove its person, then enroll again"
        return None

    def enroll(self, name: str, photos: Sequence[Entry]) -> int:
        """Add photos of a person in one transaction; return how many were not yet there."""
        n_new = 0
        with self.change():
            for photo in photos:
                if self.why_not(name, photo.path, photo.sha256) is not None:
                    continue  # also a copy of another of these photos
                self.db.execute("INSERT OR IGNORE INTO person (name) VALUES (?)", (name,))
                path, vector = os.fsencode(photo.path.resolve()), fuse(photo.embedding[None])
                self.db.execute(
                    "INSERT INTO photo (person, path, sha256, embedding) VALUES (?, ?, ?, ?)",
                    (self.person(name), path, photo.sha256, vector.astype(np.float32).tobytes()),
                )
                n_new += 1
            if n_new:
                self.record("enroll", person=self.person(name), photos=n_new)
        return n_new

    def remove(self, names: Sequence[str]) -> int:
        """Remove people; return the number of their photos. Neither is in the file any more.

        Raises:
            UserError: a person is not enrolled; then nobody is removed.
        """
        n_removed = 0
        with self.change():
            for name in names:
                person = self.person(name)
                if person is None:
                    raise UserError(f"not enrolled: {name}. See gallery.py list {self.path}")
                photos = self.photos(person)
                self.db.execute("DELETE FROM photo WHERE person = ?", (person,))
                self.db.execute("DELETE FROM person WHERE id = ?", (person,))
                self.db.executemany(  # searches for an enrolled photo
                    "UPDATE audit SET details = replace(details, ?, 'removed')",
                    [(photo.sha256,) for photo in photos],
                )
                self.record("remove", person=person, photos=len(photos))
                n_removed += len(photos)
        self.db.execute("VACUUM")
        return n_removed

    def chunks(self) -> Iterator[Chunk]:
        """Yield all photos in chunks; the list of them is the gallery in memory."""
        found = self.db.execute("SELECT person, embedding FROM photo")
        while rows := found.fetchmany(ROWS_PER_CHUNK):
            people, embeddings = zip(*rows, strict=True)
            try:
                values = np.frombuffer(b"".join(embeddings), np.float32).reshape(len(rows), -1)
                yield Chunk(np.array(people, dtype=np.int64), values)
            except (TypeError, ValueError) as error:
                raise sqlite3.DatabaseError("an embedding is damaged") from error


def search(chunks: Iterable[Chunk], probes: np.ndarray, n_ids: int) -> np.ndarray:
    """Return the cosine similarity of each probe to each person's best photo, (P, n_ids) float32.

    -inf: no person has this id.

    Args:
        chunks: `Gallery.chunks`, or the list of them.
        probes: (P, D) float32 of unit length.
        n_ids: above the largest id of a person.
    """
    best = np.full((len(probes), n_ids), -np.inf, dtype=np.float32)
    for people, embeddings in chunks:
        if embeddings.shape[1] != probes.shape[1]:
            raise sqlite3.DatabaseError("an embedding is damaged")
        for row, similarity in zip(best, (embeddings @ probes.T).T, strict=True):
            np.maximum.at(row, people, similarity)
    return best


# ----------------------------------------------------------------------------- photos


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; empty if it cannot be read, which the reader will report."""
    with suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def find_people(source: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the photos of each person, and a message per file that is no person's photo.

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
    for answer in predictor.answer([Hand([p]) for p in hand.photos], num_workers=num_workers):
        failures += answer.failures
        if answer.prediction is not None:
            paths.append(Path(str(answer.photos[0])))
            embeddings.append(answer.prediction.embedding)
            warnings += [f"{answer.photos[0]}: {text}" for text in answer.prediction.warnings]
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
    if create and config.checkpoint is None and not config.gallery.is_file():
        raise UserError(f"a new gallery needs the model: {config.gallery}. Give --checkpoint")
    if config.gallery.is_file():
        Gallery(config.gallery, create=create)  # a damaged file is reported before the work begins
    checkpoint = config.checkpoint
    if checkpoint is None:
        stored = Gallery(config.gallery).model()
        if stored is None:
            raise UserError(f"nobody is enrolled: {config.gallery}. Give --checkpoint to enroll")
        checkpoint = stored[1]
    predictor = load_predictor(
        checkpoint,
        fpir=config.fpir,
        attributes_file=config.attributes_file,
        device=config.device,
        amp=config.amp,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
    )
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
    answers = session.predictor.answer(hands, num_workers=config.num_workers)
    shown = tqdm(answers, "enroll", len(hands), leave=False, disable=None, unit="photo")
    for name, group in itertools.groupby(shown, key=lambda answer: answer.hand.name):
        entries = []
        for answer in group:
            report_failures(answer.failures)
            failures += answer.failures
            if answer.prediction is not None:
                path = Path(str(answer.photos[0]))
                entries.append(Entry(path, hashes[path], answer.prediction.embedding))
                for text in answer.prediction.warnings:
                    print(f"warning: {text}", file=sys.stderr)
        n_new = session.gallery.enroll(name, entries)
        print_json({"person": name, "photos_enrolled": n_new})
    n_people, n_photos = len(session.gallery.people()), session.gallery.n_photos()
    print_json({"people": n_people, "photos": n_photos})
    return 1 if failures else 0


def read_probes(config: GalleryConfig, session: Session) -> tuple[list[Probe], list[str]]:
    """Return the hands to search for, and a message per photo that cannot be read."""
    tables = [Path(text) for text in config.inputs if text.lower().endswith(".csv")]
    hands = [hand for path in tables for hand in read_hands(path)]
    others = [text for text in config.inputs if Path(text) not in tables]
    photos, failures = find_photos(others, [])
    hands += [Hand(photos)] if photos else []
    found = []
    for hand in hands:
        probe, messages = embed(session.predictor, hand, config.num_workers)
        found.append(probe)
        failures += messages
    return found, failures


def search_hands(session: Session, probes: Sequence[Probe]) -> Iterator[dict[str, Any]]:
    """Yield what `search` prints of each hand: the enrolled people by similarity.

    Each search is recorded in the audit trail.
    """
    config, gallery = session.config, session.gallery
    threshold = session.predictor.threshold
    vectors = np.stack([fuse(probe.embeddings) for probe in probes])
    n_photos = gallery.n_photos()
    if not n_photos:
        raise UserError(f"nobody is enrolled: {gallery.path}. Enroll people first")
    names = gallery.people()
    bar = tqdm(total=n_photos, desc="search", leave=False, disable=None, unit="photo")
    best = search(counted(gallery.chunks(), bar), vectors, max(names) + 1)
    for probe, vector, scores in zip(probes, vectors, best, strict=True):
        candidates: list[dict[str, Any]] = []
        for person in np.argsort(-scores, kind="stable")[: config.top_k].tolist():
            if person not in names or scores[person] == -np.inf:
                break
            photos = gallery.photos(person)
            nearest = photos[int(np.argmax([p.embedding @ vector for p in photos]))]
            similarity = float(scores[person])
            candidates.append(
                {"person": names[person], "similarity": similarity, "photo": str(nearest.path)}
            )
        top = int(scores.argmax())
        details = {"candidate": top, "similarity": float(scores[top])}
        with gallery.change():
            gallery.record("search", photos=probe.hashes, **details)
        yield {
            "hand": probe.name,
            "photos": list(map(str, probe.paths)),
            "unknown": None if threshold is None else bool(scores[top] <= threshold),
            "threshold": threshold,
            "fpir": config.fpir,
            "people": len(names),
            "candidates": candidates,
            "warnings": probe.warnings,
        }


def run_search(config: GalleryConfig) -> int:
    """Rank the enrolled people by similarity to each hand."""
    session = open_session(config)
    probes, failures = read_probes(config, session)
    report_failures(failures)
    if not probes:
        return 1
    records = []
    for record in search_hands(session, probes):
        print_json(record)
        records.append(record)
    if config.html:
        sections = list(map(search_section, records, probes))
        write_sheet(session, "Search in a gallery", sections)
    return 1 if failures else 0


def counted(chunks: Iterable[Chunk], bar: Any) -> Iterator[Chunk]:
    """Yield chunks and show how many photos they had."""
    with bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk.people))


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


def find_calibration(checkpoint: Path) -> Results | None:
    """Return test.py's results on unseen people, beside the checkpoint; None: there are none."""
    for folder in sorted(checkpoint.parent.glob(f"{checkpoint.stem}-*-test")):
        results = read_results(folder)
        if "galleries" in results.arrays:
            return results
    return None


def compare(checkpoint: Path, sides: Sequence[Probe]) -> dict[str, Any]:
    """Return what `verify` prints of two hands.

    Raises:
        UserError: the same photo is on both sides.
    """
    first, second = sides
    if set(first.hashes) & set(second.hashes):
        raise UserError(f"the same photo on both sides: {first.name}, {second.name}. Remove it")
    similarity = cosine_similarity(
        *(fuse(side.embeddings).astype(np.float64)[None] for side in sides)
    ).item()
    return {
        "first": {"name": first.name, "photos": list(map(str, first.paths))},
        "second": {"name": second.name, "photos": list(map(str, second.paths))},
        "similarity": similarity,
        **likelihood_ratio(checkpoint, sides),
        "warnings": [*first.warnings, *second.warnings],
    }


def run_verify(config: GalleryConfig) -> int:
    """Compare two hands: similarity, likelihood ratio and words."""
    session = open_session(config)
    sides = [find_side(session, text) for text in config.inputs]
    record = compare(session.checkpoint, sides)
    ends = [side.hashes if side.person is None else side.person for side in sides]
    with session.gallery.change():
        session.gallery.record("verify", sides=ends, similarity=record["similarity"])
    print_json(record)
    if config.html:
        write_sheet(session, "Comparison of two hands", [verify_section(record, sides)])
    return 0


def likelihood_ratio(checkpoint: Path, sides: Sequence[Probe]) -> dict[str, Any]:
    """Return what `verify` prints of the likelihood ratio; null values and why there is none."""
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
        why = f"no likelihood ratio: too few photos or people to calibrate {counts} photos: {where}"
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
    """Remove people and everything about them but their ids in the audit trail."""
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
        rows += [
            ["likelihood ratio", f"{record['likelihood_ratio']:.3g}"],
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
    """Return the photos to show; those that were deleted since their enrolment are left out."""
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
    try:
        return COMMANDS[config.command](config)
    except sqlite3.Error as error:
        raise UserError(f"cannot use the gallery {config.gallery}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
