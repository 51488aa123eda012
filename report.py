"""Write the page of an evaluation or of a training from the files in its folder: no model, no data.

    python report.py --results checkpoints/<run>/checkpoint-000030-best-dorsal_dr-val
    python report.py --run_dir checkpoints/<run>
    python report.py --architecture doc_images/architecture.png

writes report.html into the evaluation's folder, training.html into the run's, or the README's
picture of the network. A page needs no other file and no network. Photos are embedded small, from
the folder that metrics.json names; --photos names another one, --no_photos leaves them out, as hand
photos are biometric data. test.py and train.py write the same pages when they end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pages.build import LEFT_OUT, METRICS_KEYS, _read_json, write_report, write_training_report
from pages.figures import plot_architecture
from utils import build_config, build_parser, flag, one_line_errors

# ----------------------------------------------------------------------------- pages

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class ReportConfig:
    """What report.py is asked for: one of results, run_dir and architecture."""

    results: Path | None = flag(None, "folder that test.py wrote: report.html", metavar="DIR")
    run_dir: Path | None = flag(None, "folder that train.py wrote: training.html", metavar="DIR")
    architecture: Path | None = flag(
        None, f"picture to draw the network into: {', '.join(FORMATS)}"
    )
    photos: Path | None = flag(
        None, "of --results: folder of the photos (default: as metrics.json says)", metavar="DIR"
    )
    no_photos: bool = flag(False, "of --results: embed no photo, as they are biometric data")

    def __post_init__(self) -> None:
        """Refuse none or several pages at once, and what would have no effect."""
        asked = [self.results, self.run_dir, self.architecture]
        if sum(path is not None for path in asked) != 1:
            raise ValueError("give one of --results, --run_dir and --architecture")
        if self.results is None and (self.photos is not None or self.no_photos):
            raise ValueError("--photos and --no_photos go with --results")
        if self.photos is not None and self.no_photos:
            raise ValueError("give --photos or --no_photos, not both")
        if self.photos is not None and not self.photos.is_dir():
            raise ValueError(f"--photos {self.photos}: no such folder")
        if self.architecture is not None and self.architecture.suffix not in FORMATS:
            formats = " or ".join(FORMATS)
            raise ValueError(f"--architecture {self.architecture}: give a {formats} file")


def find_photos(config: ReportConfig, folder: Path) -> tuple[Path | None, str]:
    """Return the folder of the photos, or None and why."""
    if config.no_photos:
        return None, LEFT_OUT
    if config.photos is not None:
        return config.photos, ""
    named = _read_json(folder / "metrics.json", METRICS_KEYS, "test.py").get("photos")
    if not named:
        return None, "metrics.json names no folder of photos; report.py --photos DIR embeds them"
    if not Path(named).is_dir():
        return None, f"{named} is not there; report.py --photos DIR embeds them from elsewhere"
    return Path(named), ""


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = build_parser(ReportConfig, __doc__)
    config = build_config(parser, ReportConfig, vars(parser.parse_args(argv)))
    if config.results is not None:
        photos, why_none = find_photos(config, config.results)
        written = write_report(config.results, photos=photos, why_none=why_none)
    elif config.run_dir is not None:
        written = write_training_report(config.run_dir)
    else:
        assert config.architecture is not None
        plot_architecture(config.architecture)
        written = config.architecture
    print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
