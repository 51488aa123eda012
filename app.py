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
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

import gallery
from data.gallery_file import Entry, Gallery, sqlite_errors
from dataset_11k import TASKS
from engine.explain import Explainer
from gallery import GalleryConfig, Probe, Session
from pages.build import Photo, templates
from pages.charts import Table
from predict import (
    DEFAULT_FPIR,
    HANDS,
    Hand,
    HandPredictor,
    Prediction,
    describe_map,
    load_predictor,
)
from utils import UserError, flag, one_line, one_line_errors, parse_config, setup_logging

MAX_PHOTOS = 20  # of one hand
DELETE_CACHE = (60, 900)  # seconds: how often to look for uploaded photos, and their largest age
FOLDER_PREFIX = "igae-app-"  # of the temporary folder
TOP_K = 3  # classes of a task
MAX_FILE_SIZE = "50mb"
# Gradio gives every upload button the same name; this adds the label of its box.
NAME_UPLOADS = """() => new MutationObserver(() => {
  for (const button of document.querySelectorAll(".block > button[aria-dropeffect]"))
    button.ariaLabel = button.closest(".block").querySelector("label").innerText;
}).observe(document.body, {childList: true, subtree: true})"""
INTRODUCTION = f"""# IGAE-Net: photos of a hand
An estimate, never a proof of identity. Photos stay on this computer and are deleted
{DELETE_CACHE[1] // 60} minutes after their upload, or when the program ends."""


@dataclass(frozen=True)
class AppConfig:
    """Flags of app.py."""

    checkpoint: Path | None = flag(None, "checkpoint of train.py (default: the gallery's)")
    gallery: Path | None = flag(None, "known hands, to search and add to", metavar="FILE.sqlite")
    hand: str | None = flag(
        None, "hand in the photos; needed after train.py --mirror left", choices=HANDS
    )
    port: int = flag(7860, "port of the page at 127.0.0.1")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not (self.checkpoint or self.gallery):
            raise ValueError("--checkpoint or --gallery must be given")
        if not 0 < self.port < 65536:
            raise ValueError("--port must be between 1 and 65535")


# ----------------------------------------------------------------------------- results


Output = tuple[dict[str, Any], list[str]]  # a section as in gallery.py; a line per unread photo


@dataclass(frozen=True)
class Actions:
    """The functions behind the buttons of the page."""

    predictor: HandPredictor
    checkpoint: Path  # beside it, test.py's results calibrate likelihood ratios
    session: Session | None = None  # None: no gallery

    @cached_property
    def explainer(self) -> Explainer:
        """The model's class-activation maps; shuffling its weights takes time."""
        return Explainer(self.predictor.predictor)

    def predict(self, photos: Sequence[str]) -> Output:
        """Return predictions for a hand, and maps of what influences them."""
        (predicted,) = self.predictor.predict_hands([to_hand(photos)])
        if predicted.prediction is None:
            raise UserError("; ".join(predicted.failures))
        note, maps = "The maps show the influence on each prediction, not reasons for it.", []
        try:
            for photo in predicted.photos:
                explanations = self.explainer.explain(photo, predicted.prediction.classes)
                for task, found in explanations.items():
                    texts = [TASKS[task].title, *describe_map(found), Path(str(photo)).name]
                    maps.append(Photo(", ".join(texts), Image.fromarray(found.overlay), []))
        except UserError as error:
            note = f"No maps: {error}"
        section = prediction_section(predicted.prediction) | {"notes": [note], "photos": maps}
        return section, predicted.failures

    def search(self, photos: Sequence[str]) -> Output:
        """Return the most similar people of the gallery; the audit trail keeps the search."""
        probe, failures = self.embed(photos)
        with self.open_gallery() as session:
            (record,) = gallery.search_hands(session, [probe])
        nearest = gallery.read_photos([Path(found["photo"]) for found in record["candidates"]])
        return gallery.search_section(record, probe) | {"photos": nearest}, failures

    def enroll(self, photos: Sequence[str], name: str) -> Output:
        """Add the photos to a person of the gallery."""
        if not (name := name.strip()):
            raise UserError("no name. Type the name of the person")
        probe, failures = self.embed(photos, name)
        entries = list(map(Entry, probe.paths, probe.hashes, probe.embeddings))
        with self.open_gallery() as session:
            known = session.gallery
            reasons = [known.why_not(name, entry.path, entry.sha256) for entry in entries]
            lead = f"Photos of {name} enrolled: {known.enroll(name, entries)}"
        section = {"title": "Enrolment", "lead": lead, "warnings": probe.warnings}
        return section, failures + list(filter(None, reasons))

    def compare(self, first: Sequence[str], second: Sequence[str]) -> Output:
        """Return similarity and likelihood ratio of two hands."""
        named = (first, "First hand"), (second, "second hand")
        sides, failures = zip(*(self.embed(*hand) for hand in named), strict=True)
        section = gallery.verify_section(gallery.compare(self.checkpoint, sides), sides)
        return section | {"photos": []}, sum(failures, [])

    def embed(self, photos: Sequence[str], name: str = "") -> tuple[Probe, list[str]]:
        """Return the photos of a hand that can be read, and a message per other photo."""
        return gallery.embed(self.predictor, to_hand(photos, name), num_workers=0)

    @contextmanager
    def open_gallery(self) -> Iterator[Session]:
        """Yield the session with a connection of this thread; SQLite's errors name the file."""
        assert self.session is not None
        path = self.session.gallery.path
        with sqlite_errors(path):
            yield self.session._replace(gallery=Gallery(path))


def to_hand(photos: Sequence[str], name: str = "") -> Hand:
    """Return the photos of a hand; refuse none, too many and deleted ones."""
    if not 0 < len(photos) <= MAX_PHOTOS:
        raise UserError(f"{name or 'hand'}: {len(photos)} photos. Give 1 to {MAX_PHOTOS}")
    if not all(Path(photo).is_file() for photo in photos):
        raise UserError("the photos were deleted. Upload them again")
    return Hand(photos, name)


def prediction_section(found: Prediction) -> dict[str, Any]:
    """Return what the page shows of a prediction."""
    lead = {
        None: "Undecided whether the person is among the training people.",
        True: f"Unknown: probably not among the training people (FPIR {DEFAULT_FPIR:g}).",
        False: f"Similar enough to a training person (FPIR {DEFAULT_FPIR:g}).",
    }[found.unknown]
    rows = []
    for task, classes in found.probabilities.items():
        ranked = [f"{name} ({p:.1%})" for name, p in list(classes.items())[:TOP_K]]
        rows.append([TASKS[task].title, ", ".join(ranked)])
    numbers = (
        ("expected age", "{:.1f} years", found.expected_age),
        ("age, 90% interval", "{0[0]} to {0[1]} years", found.age_interval),
        ("typicality", "{:.1%} of val photos are at least as untypical", found.typicality),
    )
    rows += [[name, text.format(value)] for name, text, value in numbers if value is not None]
    table = Table("Predictions with their probabilities", ["", "prediction"], rows, "long")
    return {"title": "Prediction", "lead": lead, "tables": [table], "warnings": found.warnings}


def render(function: Callable[..., Output], *values: Any) -> str:
    """Return the HTML of an action, or an error line; an input is None if nothing is uploaded."""
    results: list[dict[str, Any]] = []
    try:
        section, failures = function(*([] if value is None else value for value in values))
        results.append({"notes": [], "tables": [], "photos": []} | section)
    except (UserError, OSError) as error:
        failures = [str(error)]
    context = {"results": results, "failures": map(one_line, failures)}
    html = templates().get_template("app.html.j2").render(context)
    return re.sub(rf"[^\s\"<>]*{FOLDER_PREFIX}\w+[\\/]\w+[\\/]", "", html)  # names as uploaded


# ----------------------------------------------------------------------------- the page


def load_gradio(folder: str) -> Any:
    """Return the package gradio, which keeps uploaded photos in `folder`; it may be missing."""
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
    os.environ["no_proxy"] = "127.0.0.1"  # gradio asks its own page whether it is up
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "app.py needs the package gradio. Run: pip install -r requirements-extra.txt"
        ) from error
    return gradio


def build_page(gradio: Any, actions: Actions) -> Any:
    """Return the page; its functions run one at a time, as maps hook into the one model."""
    output = gradio.HTML(elem_id="result", apply_default_css=False, render=False)
    add_photos = partial(gradio.File, file_count="multiple", height=160)

    def add_button(label: str, function: Callable[..., Output], *inputs: Any) -> None:
        options = {"api_visibility": "private", "concurrency_id": "model", "scroll_to_output": True}
        gradio.Button(label).click(partial(render, function), list(inputs), output, **options)

    options = {"title": "IGAE-Net", "analytics_enabled": False, "delete_cache": DELETE_CACHE}
    with gradio.Blocks(**options) as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            with gradio.Column(min_width=300):
                photos = add_photos(label="Photos of one hand")
                add_button("Predict", actions.predict, photos)
                if actions.session:
                    add_button("Search the gallery", actions.search, photos)
                    name = gradio.Textbox(label="Name of the person, to enroll", max_length=100)
                    add_button("Enroll", actions.enroll, photos, name)
                other = add_photos(label="Photos of another hand")
                add_button("Compare the two hands", actions.compare, photos, other)
            with gradio.Column(min_width=300, scale=2):
                output.render()
    return page


def load_actions(config: AppConfig) -> Actions:
    """Return the functions of the page for a checkpoint, a gallery or both."""
    if config.gallery is None:
        assert config.checkpoint is not None
        return Actions(load_predictor(config.checkpoint, hand=config.hand), config.checkpoint)
    source = ("enroll", config.gallery, ("photos",), config.checkpoint)
    flags = GalleryConfig(*source, hand=config.hand, num_workers=0)
    with sqlite_errors(config.gallery):
        session = gallery.open_session(flags, create=True)
    return Actions(session.predictor, session.checkpoint, session)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config = parse_config(AppConfig, __doc__, argv)
    setup_logging()
    for name in ("SIGTERM", "SIGHUP"):  # end like Ctrl-C, so that the folder is deleted
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:  # before a gallery is created
        socket.create_server(("127.0.0.1", config.port)).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise UserError(f"cannot use port {config.port}: {reason}. Give another --port") from error
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        gradio = load_gradio(folder)
        page = build_page(gradio, load_actions(config))
        page.launch(
            server_name="127.0.0.1",
            server_port=config.port,
            theme=gradio.themes.Default(font=["system-ui"], font_mono=["monospace"]),
            css_paths=Path(__file__).parent / "pages" / "templates" / "app.css",
            js=NAME_UPLOADS,
            share=False,
            max_file_size=MAX_FILE_SIZE,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"open http://127.0.0.1:{config.port} in a browser; Ctrl-C ends the page", flush=True)
        page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
