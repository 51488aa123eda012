"""Measure how far training, evaluation and the scripts are from what the machine can do.

    python benchmark.py --backbones swin_t resnet50 --parts train start evaluate

prints a table and writes benchmark.json (every sample, the environment, the commit; --output) and
beside it benchmark.png, the rates of the part `train`. Two variants alternate within one run:

plain  As published: every photo decoded anew, whole, by the training process; float32; channels
       first; PyTorch's default optimiser and algorithms. In `scripts` channels come last in it too,
       and algorithms are deterministic: test.py and predict.py have no flag for these.
fast   The defaults of train.py, or what --amp, --compile, --cache, --augment, --num_workers say.

Parts, each a group of rows of the table:

train     Photos/s of the data path alone, of the model alone (pixels on the device: forward,
          backward, optimiser) and end to end; end to end over the smaller of both; FLOP/s of the
          step beside those of a large matrix product of the same type.
start     Seconds to the end of the first step and peak memory, each in a process of its own.
evaluate  Photos/s of an evaluation.
scripts   test.py and predict.py as commands: seconds, peak memory above their imports.
help      Every script's --help, and what its imports take above those of torch and timm.
split     dataset_11k_split.py on a made-up HandInfo.csv, every photo an empty file.
cache     Decoding photos into the cache, and opening it again.
compile   Seconds of compiling, a step before and after, the steps after which that has paid back.

Weights are random: speed does not depend on them. Nothing is written besides the results and a
temporary folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from configs import BenchmarkConfig
from flags import build_config, config_parser
from utils import one_line_errors


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(BenchmarkConfig, __doc__)
    config = build_config(parser, BenchmarkConfig, vars(parser.parse_args(argv)))
    # only now: PyTorch takes seconds to load, which neither --help nor a wrong flag waits for
    from speed import measure_and_write

    measure_and_write(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
