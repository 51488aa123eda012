"""Draw doc_images/app_*.png: the page of app.py with drawn hands, in windows of two widths.

    python docs/app_pictures.py CHROMIUM CHECKPOINT GALLERY PHOTO ...

needs the package playwright and CHROMIUM, the browser's program.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PORT = 7859
HEIGHTS = {1280: 760, 400: 1640}  # of a window, by its width


def main(chromium: str, checkpoint: str, gallery: str, *photos: str) -> None:
    """Draw the pictures."""
    command = [sys.executable, str(ROOT / "app.py"), "--checkpoint", checkpoint]
    command += ["--gallery", gallery, "--port", str(PORT)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        sync_playwright() as driver,
    ):
        try:
            assert process.stdout
            process.stdout.readline()  # the page is served
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": HEIGHTS[1280]})
            page.goto(f"http://127.0.0.1:{PORT}")
            page.locator("input[type=file]").first.set_input_files(photos)
            page.get_by_role("cell", name=Path(photos[-1]).name).wait_for()
            page.get_by_role("button", name="Predict").click()
            page.locator("#result img").last.wait_for()
            page.mouse.move(0, 0)
            for width, height in HEIGHTS.items():
                page.set_viewport_size({"width": width, "height": height})
                page.wait_for_timeout(1000)  # scrolling and layout
                page.evaluate("scrollTo(0, 0)")
                path = ROOT / "doc_images" / f"app_{width}.png"
                page.screenshot(path=path, animations="disabled")
                Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
            browser.close()
        finally:
            process.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
