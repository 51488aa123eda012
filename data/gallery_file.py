"""A gallery in one SQLite file: people, paths and embeddings of their photos; and its search."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import UserError

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


class Chunk(NamedTuple):
    """Some enrolled photos: (n,) ids of their people, (n, D) float32 embeddings of unit length."""

    people: np.ndarray
    embeddings: np.ndarray


class Entry(NamedTuple):
    """A photo to enroll; the embedding, (D,), may have any length."""

    path: Path
    sha256: str
    embedding: np.ndarray


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors in the block into a `UserError` that names the gallery."""
    try:
        yield
    except sqlite3.Error as error:
        what_next = "If it is damaged, restore a copy"
        raise UserError(f"cannot use the gallery {path}: {error}. {what_next}") from error


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
        """Add photos of a person in one transaction; return the number of new ones."""
        n_new = 0
        with self.change():
            for photo in photos:
                if self.why_not(name, photo.path, photo.sha256) is not None:
                    continue  # also a copy of another of these photos
                self.db.execute("INSERT OR IGNORE INTO person (name) VALUES (?)", (name,))
                path, vector = os.fsencode(photo.path.resolve()), photo.embedding.astype(np.float64)
                vector /= np.linalg.norm(vector) or 1
                self.db.execute(
                    "INSERT INTO photo (person, path, sha256, embedding) VALUES (?, ?, ?, ?)",
                    (self.person(name), path, photo.sha256, vector.astype(np.float32).tobytes()),
                )
                n_new += 1
            if n_new:
                self.record("enroll", person=self.person(name), photos=n_new)
        return n_new

    def remove(self, names: Sequence[str]) -> int:
        """Remove people and their photos from the file; return the number of photos.

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
        for row, probe in zip(best, probes, strict=True):  # threads of one product would wait
            np.maximum.at(row, people, embeddings @ probe)
    return best
