"""Train IGAE-Net on one hand aspect: identity, gender and age group from one photo.

    python train.py --attributes_file ./11k/sub_dataset/dorsal_dr.csv

reads the aspect's train and val rows (dataset_11k_split.py; --protocol, --fold) and writes
checkpoints/<time>/:
config.json, metrics.jsonl (a line per epoch), train.log, tensorboard/, and checkpoints that are
each enough to evaluate, predict or resume. The defaults are the published recipe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import TrainConfig, config_of_run
from flags import build_config, config_parser
from run_folder import read_run
from utils import one_line_errors


def may_be_restarted() -> bool:
    """Return whether torchrun starts this process again after a failure (`--max-restarts`).

    Its count of restarts does not tell: of several machines only the one that failed counts.
    """
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def is_begun(run_dir: Path) -> bool:
    """Return whether a run has been started in the folder."""
    return (run_dir / "config.json").is_file()


def read_flags(argv: Sequence[str] | None) -> tuple[TrainConfig, dict[str, Any] | None]:
    """Return the configuration, and of a run that goes on what describes it.

    A process that torchrun starts again goes on in the folder that its first start was given.
    """
    parser = config_parser(TrainConfig, __doc__)
    given = vars(parser.parse_args(argv))
    run_dir = given.get("run_dir")
    if may_be_restarted() and "resume" not in given and run_dir and is_begun(run_dir):
        given["resume"] = given.pop("run_dir")
    if "resume" not in given:
        return build_config(parser, TrainConfig, given), None
    stored = read_run(given["resume"])
    if given["resume"].is_file():
        given["resume"] = given["resume"].parent
    return build_config(parser, TrainConfig, config_of_run(given, stored["config"])), stored


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config, stored = read_flags(argv)
    # only now: PyTorch takes seconds to load, which neither --help nor a wrong flag waits for
    from training import run_training

    return run_training(config, stored)


if __name__ == "__main__":
    sys.exit(main())
