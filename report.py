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

from configs import ReportConfig
from flags import build_config, config_parser
from utils import one_line_errors


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(ReportConfig, __doc__)
    config = build_config(parser, ReportConfig, vars(parser.parse_args(argv)))
    # only now: to load what draws takes seconds, which neither --help nor a wrong flag waits for
    from figures import plot_architecture
    from run_pages import find_photos, write_report, write_training_report

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
