"""The documentation: links lead somewhere, and every flag and measure is described."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from app import AppConfig
from dataset_11k_synthetic import SyntheticConfig
from export import ExportConfig
from gallery import GalleryConfig
from measures.registry import BASELINES, MEASURES
from predict import PredictConfig
from test import EvalConfig
from train import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_titles(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [a or b for a, b in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text)]
    local = [link.partition("#") for link in links if not link.startswith("http")]
    for path, _, title in local:
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if title:
            assert title in anchors(target), (path, title)


@pytest.mark.parametrize(
    ("page", "config"),
    [
        *(("training", TrainConfig), ("evaluation", EvalConfig), ("data", SyntheticConfig)),
        *(("prediction", PredictConfig), ("export", ExportConfig)),
        *(("gallery", GalleryConfig), ("prediction", AppConfig)),
    ],
)
def test_every_flag_is_described(page: str, config: type) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    flags = [field.name for field in dataclasses.fields(config) if "help" in field.metadata]
    assert [name for name in flags if f"| `--{name}" not in text] == []


def test_every_measure_and_baseline_is_described() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    assert [key for key in (*MEASURES, *BASELINES) if f"| `{key}` |" not in text] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200
