r"""Show a page in the browser: predictions for photos of a hand, a gallery's search, comparison.

    python app.py --checkpoint ./checkpoints/<run>/<checkpoint>.pth --gallery hands.sqlite

serves the page to this computer only, until Ctrl-C. It needs the package gradio. Uploaded photos
are kept in a temporary folder: each for 15 minutes, none when the program ends. The gallery keeps
embeddings of the photos that are enrolled, and in its audit trail hashes of those searched for.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import gallery
from dataset_11k import TASKS
from engine.explain import Explainer
from gallery import Entry, Gallery, GalleryConfig, Probe, Session
from pages.build import Photo, templates
from pages.charts import Table
from predict import DEFAULT_FPIR, Hand, HandPredictor, Prediction, describe_map, load_predictor
from utils import UserError, flag, one_line, one_line_errors, parse_config, setup_logging

MAX_PHOTOS = 20  # of one hand
MAX_FILE_SIZE = "50mb"
DELETE_CACHE = (60, 900)  # seconds: how often to look for uploaded photos, and their largest age
FOLDER_PREFIX = "igae-app-"  # of the temporary folder
TOP_K = 3  # classes of a task
STYLE = Path(__file__).parent / "pages" / "templates" / "app.css"
INTRODUCTION = f"""# IGAE-Net: photos of a hand
An estimate, never a proof of identity. Photos stay on this computer and are deleted
{DELETE_CACHE[1] // 60} minutes after their upload, or when the program ends."""


@dataclass(frozen=True)
class AppConfig:
    """Flags of app.py."""

    checkpoint: Path | None = flag(None, "checkpoint of train.py (default: the gallery's)")
    gallery: Path | None = flag(None, "known hands, to search and add to", metavar="FILE.sqlite")
    port: int = flag(7860, "port of the page at 127.0.0.1")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not (self.checkpoint or self.gallery):
            raise ValueError("--checkpoint or --gallery must be given")
        if not 0 < self.port < 65536:
            raise ValueError("--port must be between 1 and 65535")


# ----------------------------------------------------------------------------- answers


Shown = tuple[dict[str, Any], list[str]]  # a section as in gallery.py; a line per photo left out


class Desk:
    """The functions of the page.

    Args:
        predictor: the model.
        checkpoint: its file, beside which test.py's results calibrate likelihood ratios.
        session: with the gallery; None: there is none.
    """

    def __init__(
        self, predictor: HandPredictor, checkpoint: Path, session: Session | None = None
    ) -> None:
        self.predictor, self.checkpoint, self.session = predictor, checkpoint, session
        self.explainer = Explainer(predictor.predictor)

    def predict(self, photos: Sequence[str]) -> Shown:
        """Return predictions for a hand, and maps of what influences them."""
        (answer,) = self.predictor.answer([to_hand(photos)])
        if answer.prediction is None:
            raise UserError("; ".join(answer.failures))
        note, maps = "The maps show the influence on each prediction, not reasons for it.", []
        try:
            for photo in answer.photos:
                explanations = self.explainer.explain(photo, answer.prediction.classes)
                for task, found in explanations.items():
                    texts = [TASKS[task].title, *describe_map(found), Path(str(photo)).name]
                    maps.append(Photo(", ".join(texts), Image.fromarray(found.overlay), []))
        except UserError as error:
            note = f"No maps: {error}"
        section = prediction_section(answer.prediction)
        return section | {"notes": [note], "photos": maps}, answer.failures

    def search(self, photos: Sequence[str]) -> Shown:
        """Return the most similar people of the gallery; the audit trail keeps the search."""
        probe, failures = self.embed(photos)
        (record,) = gallery.search_hands(self.open_gallery(), [probe])
        nearest = gallery.read_photos([Path(found["photo"]) for found in record["candidates"]])
        return gallery.search_section(record, probe) | {"photos": nearest}, failures

    def enroll(self, photos: Sequence[str], name: str) -> Shown:
        """Add the photos to a person of the gallery."""
        if not (name := name.strip()):
            raise UserError("no name. Type the name of the person")
        probe, failures = self.embed(photos, name)
        known, keys = self.open_gallery().gallery, list(zip(probe.paths, probe.hashes, strict=True))
        refused = [reason for key in keys if (reason := known.why_not(name, *key))]
        entries = [Entry(*key, e) for key, e in zip(keys, probe.embeddings, strict=True)]
        lead = f"Photos of {name} enrolled: {known.enroll(name, entries)}"
        section = {"title": "Enrolment", "lead": lead, "warnings": probe.warnings}
        return section, failures + refused

    def compare(self, first: Sequence[str], second: Sequence[str]) -> Shown:
        """Return similarity and likelihood ratio of two hands."""
        named = (first, "First hand"), (second, "second hand")
        sides, failures = zip(*(self.embed(*hand) for hand in named), strict=True)
        section = gallery.verify_section(gallery.compare(self.checkpoint, sides), sides)
        return section | {"photos": []}, sum(failures, [])

    def embed(self, photos: Sequence[str], name: str = "") -> tuple[Probe, list[str]]:
        """Return the photos of a hand that can be read, and a message per other photo."""
        return gallery.embed(self.predictor, to_hand(photos, name), num_workers=0)

    def open_gallery(self) -> Session:
        """Return the session with a connection of this thread."""
        assert self.session is not None
        return self.session._replace(gallery=Gallery(self.session.gallery.path))


def to_hand(photos: Sequence[str], name: str = "") -> Hand:
    """Return the photos of a hand; refuse none, too many and deleted ones."""
    if not 0 < len(photos) <= MAX_PHOTOS:
        raise UserError(f"{name or 'hand'}: {len(photos)} photos. Give 1 to {MAX_PHOTOS}")
    if not all(Path(photo).is_file() for photo in photos):
        raise UserError("the photos were deleted meanwhile. Upload them again")
    return Hand(photos, name)


def prediction_section(found: Prediction) -> dict[str, Any]:
    """Return what the page shows of a prediction."""
    lead = {
        None: "Whether the person is one of the training was not decided.",
        True: f"Unknown: probably nobody of the training (FPIR {DEFAULT_FPIR:g}).",
        False: f"Similar enough to somebody of the training (FPIR {DEFAULT_FPIR:g}).",
    }[found.unknown]
    rows = []
    for task, classes in found.probabilities.items():
        ranked = [f"{name} ({p:.1%})" for name, p in list(classes.items())[:TOP_K]]
        rows.append([TASKS[task].title, ", ".join(ranked)])
    if found.expected_age is not None:
        rows.append(["expected age", f"{found.expected_age:.1f} years"])
    if found.age_interval is not None:
        rows.append(["age, 90% interval", "{} to {} years".format(*found.age_interval)])
    if found.typicality is not None:
        rows.append(
            ["typicality", f"{found.typicality:.1%} of val photos are at least as untypical"]
        )
    table = Table("Predictions with their probabilities", ["", "prediction"], rows, "long")
    section = {"title": "Prediction", "lead": lead, "tables": [table]}
    return section | {"warnings": found.warnings}


def render(function: Callable[..., Shown], *values: Any) -> str:
    """Return the HTML of an answer; an expected failure is a line of it.

    Args:
        function: of `Desk`.
        values: of its inputs; None: no photo was uploaded.
    """
    section: dict[str, Any] | None = None
    try:
        section, failures = function(*([] if value is None else value for value in values))
    except (UserError, OSError, sqlite3.Error) as error:
        failures = [str(error)]
    empty: dict[str, Any] = {"notes": [], "tables": [], "photos": []}
    context = {"results": [empty | section] if section else [], "failures": map(one_line, failures)}
    html = templates().get_template("app.html.j2").render(context)
    return re.sub(rf"[^\s\"<>]*{FOLDER_PREFIX}\w+[\\/]\w+[\\/]", "", html)  # names as uploaded


# ----------------------------------------------------------------------------- the page


def load_gradio(folder: str) -> Any:
    """Return the module of the package gradio, which keeps uploaded photos in `folder`.

    Raises:
        UserError: it is missing.
    """
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
    os.environ["no_proxy"] = "127.0.0.1"  # gradio asks its own page whether it is up
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "app.py needs the package gradio. Run: pip install -r requirements-extra.txt"
        ) from error
    return gradio


def build_page(gradio: Any, desk: Desk) -> Any:
    """Return the page; its functions run one at a time, as maps hook into the one model."""
    answer = gradio.HTML(elem_id="answer", apply_default_css=False, render=False)

    def add_photos(label: str) -> Any:
        return gradio.File(label=label, file_count="multiple", height=160)

    def add_button(label: str, function: Callable[..., Shown], *inputs: Any) -> None:
        options = {"api_visibility": "private", "concurrency_id": "model", "scroll_to_output": True}
        gradio.Button(label).click(partial(render, function), list(inputs), answer, **options)

    with gradio.Blocks(
        title="IGAE-Net", analytics_enabled=False, delete_cache=DELETE_CACHE
    ) as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            with gradio.Column(min_width=300):
                photos = add_photos("Photos of one hand")
                add_button("Predict", desk.predict, photos)
                if desk.session:
                    add_button("Search the gallery", desk.search, photos)
                    name = gradio.Textbox(label="Name of the person, to enroll", max_length=100)
                    add_button("Enroll", desk.enroll, photos, name)
                other = add_photos("Photos of another hand")
                add_button("Compare the two hands", desk.compare, photos, other)
            with gradio.Column(min_width=300, scale=2):
                answer.render()
    return page


def open_desk(config: AppConfig) -> Desk:
    """Return the functions of the page for a checkpoint, a gallery or both."""
    if config.gallery is None:
        assert config.checkpoint is not None
        return Desk(load_predictor(config.checkpoint), config.checkpoint)
    flags = GalleryConfig("enroll", config.gallery, ("photos",), config.checkpoint, num_workers=0)
    try:
        session = gallery.open_session(flags, create=True)
    except sqlite3.Error as error:
        raise UserError(f"cannot use the gallery {config.gallery}: {error}") from error
    return Desk(session.predictor, session.checkpoint, session)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config = parse_config(AppConfig, __doc__, argv)
    setup_logging()
    for name in ("SIGTERM", "SIGHUP"):  # end like Ctrl-C, so that the folder is deleted
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        gradio = load_gradio(folder)
        page = build_page(gradio, open_desk(config))
        try:
            page.launch(
                server_name="127.0.0.1",
                server_port=config.port,
                share=False,
                max_file_size=MAX_FILE_SIZE,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                quiet=True,
                prevent_thread_lock=True,
                theme=gradio.themes.Default(font=["system-ui"], font_mono=["monospace"]),
                css_paths=STYLE,
            )
        except OSError as error:
            raise UserError(f"port {config.port} is in use. Give another --port") from error
        print(f"open http://127.0.0.1:{config.port} in a browser; Ctrl-C ends the page", flush=True)
        page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
