"""Say whose hand a photo shows, of which gender and age group, as far as a checkpoint knows.

    python predict.py --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth photo.jpg folder

prints one JSON line (or CSV row) per photo with the likeliest classes of each task; folders are
searched for pictures. With --output it writes the photos with their answers below as well. A photo
that cannot be read gets a line on stderr, the others are answered, and the exit code is 1.

The answer is an estimate among the people of the training, never a proof of identity.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from configs import PredictConfig
from flags import build_config, config_parser
from utils import one_line_errors


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(PredictConfig, __doc__)
    parser.add_argument("photos", nargs="+", type=Path, help="photos, or folders of photos")
    config = build_config(parser, PredictConfig, vars(parser.parse_args(argv)))
    # only now: PyTorch takes seconds to load, which neither --help nor a wrong flag waits for
    from prediction import answer_photos

    return 1 if answer_photos(config) else 0


if __name__ == "__main__":
    sys.exit(main())
