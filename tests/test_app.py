"""app.py: the page in a real browser, what stays of photos, and errors as one line."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import app
from app import Actions, AppConfig, load_actions, render

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PHOTOS = ("Hand_0000002.jpg", "Hand_0000004.jpg", "Hand_0000020.jpg")


@pytest.fixture
def photos(split_root: Path) -> list[str]:
    return [str(split_root / "Hands" / name) for name in PHOTOS]


@pytest.fixture
def actions(tiny_checkpoint: Path, tmp_path: Path) -> Actions:
    return load_actions(AppConfig(tiny_checkpoint, tmp_path / "hands.sqlite"))


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_a_hand_is_predicted_enrolled_found_and_compared(
    actions: Actions, photos: list[str], tmp_path: Path
) -> None:
    prediction = actions.predictor.predict_hand(photos[:2])
    text = words(html := render(actions.predict, photos[:2]))
    for task, name in prediction.classes.items():
        assert f"{name} ({prediction.probabilities[task][name]:.1%})" in text
    assert f"expected age {prediction.expected_age:.1f} years" in text
    assert html.count("data:image/jpeg") == 2 * len(prediction.classes)
    assert "nobody is enrolled" in render(actions.search, photos[:1])
    copies = [shutil.copy(photo, tmp_path) for photo in photos[:2]]
    assert "Photos of Ada enrolled: 2" in render(actions.enroll, copies, " Ada ")
    assert "Photos of Ada enrolled: 0" in render(actions.enroll, photos[:2], "Ada")
    assert "already enrolled as Ada, not Eve" in words(render(actions.enroll, photos[:1], "Eve"))
    html = render(actions.search, photos[:1])
    assert "1 Ada 1.0000" in words(html)
    assert html.count("<img") == 1
    for copy in copies:
        Path(copy).unlink()
    html = render(actions.search, photos[:1])  # as uploaded photos are deleted
    assert "1 Ada 1.0000" in words(html)
    assert "<img" not in html
    text = words(render(actions.compare, photos[:1], photos[1:]))
    assert "First hand and second hand: similarity only." in text
    assert "the same photo on both sides" in render(actions.compare, photos[:1], photos[:1])


def test_errors_are_lines_without_markup_and_folders(
    actions: Actions, photos: list[str], tmp_path: Path
) -> None:
    upload = tmp_path / f"{app.FOLDER_PREFIX}x" / "0a"
    upload.mkdir(parents=True)
    bad = upload / "<b>note.jpg"
    bad.write_text("not a photo")
    for html in (
        render(actions.predict, [str(bad)]),
        render(actions.predict, [photos[0], str(bad)]),
    ):
        assert html.count(">error:") == 1
        assert "&lt;b&gt;note.jpg" in html
        assert str(upload) not in html
    assert "error: hand: 0 photos. Give 1 to 20" in render(actions.predict, None)
    assert "error: hand: 21 photos. Give 1 to 20" in render(actions.predict, photos[:1] * 21)
    assert "error: the photos were deleted" in render(actions.predict, [*photos, "gone.jpg"])
    assert "error: no name." in render(actions.enroll, photos[:1], " ")
    file = tmp_path / "hands.sqlite"
    file.write_bytes(b"damaged" * 1000)
    for html in (
        render(actions.search, photos[:1]),
        render(actions.enroll, photos[:1], "Ada"),
    ):
        assert f"error: cannot use the gallery {file}: file is not a database. If it is" in html


def test_a_missing_package_and_a_foreign_file_are_one_line(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    arguments = ["--checkpoint", str(tiny_checkpoint), "--port"]
    assert app.main([*arguments, str(free_port())]) == 1
    assert "error: app.py needs the package gradio" in capsys.readouterr().err
    (tmp_path / "foreign.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(app.UserError, match="cannot use the gallery"):
        load_actions(AppConfig(tiny_checkpoint, tmp_path / "foreign.sqlite"))


def test_a_port_in_use_creates_no_gallery(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "hands.sqlite"
    flags = ["--checkpoint", str(tiny_checkpoint), "--gallery", str(file)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "app.py", *flags, "--port", port]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    message = f"error: cannot use port {port}: Address already in use. Give another --port"
    assert found.stderr.splitlines()[-1] == message
    assert not file.exists()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def address(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[str]:
    """The page's address; at the end the program is stopped and must leave no file."""
    temporary, port = tmp_path / "temporary", free_port()
    temporary.mkdir()
    flags = ["--checkpoint", str(tiny_checkpoint), "--gallery", str(tmp_path / "hands.sqlite")]
    command = [sys.executable, "app.py", *flags, "--port", str(port)]
    proxy = "http://127.0.0.1:9"  # nothing answers there
    environment = os.environ | {"TMPDIR": str(temporary), "no_proxy": "", "http_proxy": proxy}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            assert f"open http://127.0.0.1:{port} " in process.stdout.readline()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
        process.communicate(timeout=120)
    assert list(temporary.iterdir()) == []


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium; its profile is deleted at the end."""
    pytest.importorskip("gradio", reason="needs the package gradio")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs Debian's package chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


FOCUSED = """() => { const e = document.activeElement;
    return e.labels?.[0]?.innerText || e.ariaLabel || e.innerText; }"""


@pytest.mark.slow
def test_the_page_in_a_browser(
    browser: Any, address: str, photos: list[str], tmp_path: Path
) -> None:
    page, hosts = browser.new_page(viewport={"width": 1280, "height": 900}), set()
    page.on("request", lambda request: hosts.add(request.url.partition("?")[0]))
    page.goto(address)
    bad = tmp_path / "bad.jpg"
    bad.write_text("not a photo")

    def upload(place: int, *files: str) -> None:
        page.locator("input[type=file]").nth(place).set_input_files(files)
        for file in files:
            page.get_by_role("cell", name=Path(file).name).wait_for()

    def press(button: str, result: str) -> str:
        page.get_by_role("button", name=button, exact=True).press("Enter")
        page.locator("#result", has_text=result).wait_for()
        return str(page.locator("#result").inner_text())

    for name in ("Photos of one hand", "Photos of another hand"):
        page.get_by_role("button", name=name).wait_for()
    press("Predict", "error: hand: 0 photos. Give 1 to 20")
    upload(1, photos[2], str(bad))
    upload(0, *photos[:2])
    text = press("Predict", "Predictions with their probabilities")
    for words_shown in ("identity", "expected age", "age, 90% interval", "typicality"):
        assert words_shown in text
    assert page.locator("#result img").count() == 6
    press("Enroll", "error: no name. Type the name of the person")
    page.get_by_label("Name of the person, to enroll").fill("Ada")
    press("Enroll", "Photos of Ada enrolled: 2")
    assert "Ada" in press("Search the gallery", "Among 1 people")
    assert "bad.jpg" in press("Compare the two hands", "First hand and second hand: similarity")
    assert str(tmp_path) not in page.locator("#result").inner_text()

    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(FOCUSED))
    buttons = {"Predict", "Search the gallery", "Enroll", "Compare the two hands"}
    assert buttons | {"Name of the person, to enroll"} <= reached
    assert "" not in reached

    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert {url for url in hosts if not url.startswith((f"{address}/", "data:", "blob:"))} == set()
    with sqlite3.connect(tmp_path / "hands.sqlite") as known:
        assert known.execute("SELECT name FROM person").fetchall() == [("Ada",)]
