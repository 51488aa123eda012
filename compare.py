r"""Compare backbones, hand aspects and protocols: a run each, one table, one figure.

    python compare.py --backbones swin_t resnet50 --aspects dorsal_dr palmar_pr \
        --protocols paper subject-disjoint --input ./11k --output ./comparison --N_epochs 50

starts train.py and test.py for every backbone, aspect, protocol, fold and seed; flags that are not
listed below go to train.py. Writes, after every finished run: results.csv, differences.csv,
table.md, comparison.png. The same command again goes on where it was interrupted, and repeats
nothing that is finished.

    python compare.py --output ./comparison --difference dorsal_dr-paper-swin_t \
        dorsal_dr-paper-resnet50

says whether two rows of the table differ by more than chance. A row is named as its runs' folders
are; without -fold_<k> or -seed_<s> all folds or seeds are averaged.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from configs import OWN_FLAGS, CompareConfig, TrainConfig
from flags import build_config, config_parser
from utils import one_line_errors

INSTEAD = {
    "attributes_file": "--input and --aspects",
    "backbone_weights": "--backbone_weights NAME=FILE",
    "run_dir": "--output",
    "resume": "the same command again",
}


def read_flags(
    argv: Sequence[str] | None,
) -> tuple[CompareConfig, list[str], dict[str, Any], argparse.ArgumentParser]:
    """Return the configuration, train.py's flags as text and by name, and train.py's parser."""
    parser = config_parser(CompareConfig, __doc__)
    values, flags = parser.parse_known_args(argv)
    config = build_config(parser, CompareConfig, vars(values))
    train_parser = config_parser(TrainConfig, None)
    train_parser.prog, train_parser.usage = parser.prog, parser.format_usage()[7:]
    given = vars(train_parser.parse_args(flags))
    for name in OWN_FLAGS:
        if name in given:
            instead = INSTEAD.get(name, f"--{name}s")
            parser.error(f"--{name} is set for every run; give {instead}")
    if given and not config.backbones:
        parser.error(
            f"--{next(iter(given))} is for train.py, and nothing is to be trained: leave it out, or"
            " give --backbones"
        )
    for backbone, seed in itertools.product(config.backbones, config.seeds):
        own = {"backbone_weights": config.weights.get(backbone), "seed": seed}
        build_config(train_parser, TrainConfig, {**given, **own})  # refuses what train.py does
    return config, flags, given, train_parser


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config, flags, given, train_parser = read_flags(argv)
    # only now: PyTorch takes seconds to load, which neither --help nor a wrong flag waits for
    from sweep import print_difference, run_sweep

    if config.difference:
        print_difference(config)
        return 0
    return run_sweep(config, flags, given, train_parser)


if __name__ == "__main__":
    sys.exit(main())
