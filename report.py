"""Write the report of an evaluation or of a training run, from the files in its folder alone.

    python report.py --results checkpoints/<run>/checkpoint-000030-best-dorsal_dr-val
    python report.py --run_dir checkpoints/<run>

writes report.html, confusion_<task>.png and sample_grid.png into the evaluation's folder (with
--model_card also model_card.html), or training.html into the run's. A report is a single file that
opens offline. Small photos are embedded from the folder that metrics.json names, or from --photos;
--no_photos leaves these biometric data out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pages.build import read_metrics, write_report, write_training_report
from pages.model_card import write_model_card
from utils import flag, one_line_errors, parse_config


@dataclass(frozen=True)
class ReportConfig:
    """Flags of report.py."""

    results: Path | None = flag(
        None, "write the report.html of this folder of test.py", metavar="DIR"
    )
    run_dir: Path | None = flag(
        None, "write the training.html of this folder of train.py", metavar="DIR"
    )
    photos: Path | None = flag(
        None, "of --results: folder of the photos (default: as metrics.json says)", metavar="DIR"
    )
    no_photos: bool = flag(False, "of --results: leave out photos, which are biometric data")
    model_card: bool = flag(
        False, "of --results: also write model_card.html, with a validation matrix"
    )

    def __post_init__(self) -> None:
        """Refuse none or both of the folders, and flags that would have no effect."""
        if (self.results is None) == (self.run_dir is None):
            raise ValueError("give one of --results and --run_dir")
        of_results = self.photos is not None or self.no_photos or self.model_card
        if self.results is None and of_results:
            raise ValueError("--photos, --no_photos and --model_card need --results")
        if self.photos is not None and self.no_photos:
            raise ValueError("give --photos or --no_photos, not both")
        if self.photos is not None and not self.photos.is_dir():
            raise ValueError(f"no such folder: --photos {self.photos}")


def photo_folder(config: ReportConfig, folder: Path) -> tuple[Path | None, str]:
    """Return the folder of the photos of an evaluation, or None and the reason."""
    if config.no_photos or config.photos is not None:
        return config.photos, ""
    named = read_metrics(folder).get("photos")
    if not named:
        return None, "metrics.json names no folder of photos; give report.py --photos DIR"
    if not Path(named).is_dir():
        return None, f"the folder {named} does not exist; give report.py --photos DIR"
    return Path(named), ""


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config = parse_config(ReportConfig, __doc__, argv)
    if config.results is not None:
        photos, why_none = photo_folder(config, config.results)
        print(f"wrote {write_report(config.results, photos=photos, why_none=why_none)}")
        if config.model_card:
            print(f"wrote {write_model_card(config.results)}")
    else:
        assert config.run_dir is not None
        print(f"wrote {write_training_report(config.run_dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
