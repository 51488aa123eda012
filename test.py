r"""Evaluate a checkpoint of train.py: every photo of a split once, every score over the whole set.

    python test.py --attributes_file ./11k/sub_dataset/dorsal_dr.csv \
        --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth

prints accuracies, a classification report per task, and each headline number with its interval and
controls; writes, in the folder <checkpoint>-<aspect>-<split>/ beside the checkpoint: metrics.json,
predictions.csv, predictions.npz, confusion matrices and a grid of photos with truth and prediction.

People that a disjoint protocol shows were never trained on: their embeddings are matched.
--test_attributes_file evaluates gender and age on another aspect, on people not trained on.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from configs import EvalConfig
from flags import build_config, config_parser
from utils import one_line_errors


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(EvalConfig, __doc__)
    config = build_config(parser, EvalConfig, vars(parser.parse_args(argv)))
    # only now: PyTorch takes seconds to load, which neither --help nor a wrong flag waits for
    from evaluation import evaluate

    given = sys.argv[1:] if argv is None else argv
    evaluate(config, shlex.join(["python", "test.py", *given]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
