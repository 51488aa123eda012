"""Decide who goes where: HandInfo.csv to one CSV per hand aspect and its train and val rows.

    python dataset_11k_split.py --input ./11k

writes <input>/sub_dataset/<aspect>.csv and <input>/trainval/<aspect>/{train,val}.csv, and prints
what each holds. Protocols:

paper  Half of the photos without accessories train, the other half are both selected on and
       reported on, drawn by photo: nearly everybody is on both sides, as published.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_11k import (
    ASPECTS,
    PROTOCOLS,
    SPLIT_COLUMNS,
    SplitFiles,
    check_photos,
    missing_photos,
    read_hand_info,
)
from flags import build_config, config_parser, flag
from utils import (
    UserError,
    atomic_write,
    logger,
    one_line_errors,
    setup_logging,
)

PAPER_SEED = 42  # fixed: another seed would be another split than the published one


@dataclass(frozen=True)
class SplitConfig:
    """What dataset_11k_split.py is asked for."""

    input: str = flag("./11k", "folder that holds Hands/ and HandInfo.csv")
    protocol: str = flag("paper", "who goes where, see above", choices=PROTOCOLS)
    skip_missing: bool = flag(False, "leave out photos that are listed but not in Hands/")


# An aspect's rows -> its shuffled rows and the names of its splits with their part of these.
AspectSplit = tuple[pd.DataFrame, dict[str, pd.DataFrame]]


def split_paper(by_aspect: dict[str, pd.DataFrame]) -> dict[str, AspectSplit]:
    """Return the published split: one draw per aspect in the order of `ASPECTS`, 50/50 by photo.

    Source: github.com/nathanlem1/IGAE-Net, dataset_11k_split.py lines 63-117.
    """
    random = np.random.RandomState(PAPER_SEED)
    splits: dict[str, AspectSplit] = {}
    for aspect, rows in by_aspect.items():
        drawn = rows.iloc[random.choice(len(rows), len(rows), replace=False)]
        half = len(drawn) // 2
        splits[aspect] = drawn, {"train": drawn.iloc[:half], "val": drawn.iloc[half:]}
    return splits


DRAWS: dict[str, Callable[[dict[str, pd.DataFrame]], dict[str, AspectSplit]]] = {
    "paper": split_paper,
}


def rows_by_aspect(hand_info: pd.DataFrame, input_folder: str) -> dict[str, pd.DataFrame]:
    """Return the photos without accessories, in file order, as the columns of a split CSV.

    Args:
        hand_info: as `read_hand_info` returns it.
        input_folder: the data root as the user wrote it; image_path begins with it, as published.
    """
    plain = hand_info[hand_info["accessories"] == 0]
    rows = plain.assign(
        image_path=f"{input_folder.rstrip('/')}/Hands/" + plain["imageName"],
        name=plain["imageName"],
    )
    return {aspect: rows[rows["aspectOfHand"] == value] for aspect, value in ASPECTS.items()}


def without_missing(splits: dict[str, AspectSplit], photos: Path) -> dict[str, AspectSplit]:
    """Return the splits without the rows whose photo is not in the folder; sides stay as drawn."""
    every_row = pd.concat([drawn for drawn, _ in splits.values()])
    missing = missing_photos(every_row, photos)
    if len(missing) == len(every_row):
        raise UserError(f"none of the {len(every_row)} photos that are listed is in {photos}")
    logger.info("--skip_missing left out %d of %d photos", len(missing), len(every_row))

    def there(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[~rows["name"].isin(missing)]

    return {
        aspect: (there(drawn), {name: there(part) for name, part in parts.items()})
        for aspect, (drawn, parts) in splits.items()
    }


def split_summary(splits: dict[str, AspectSplit]) -> pd.DataFrame:
    """Return one line per aspect: photos, people, photos per person, sides, strangers in val."""
    lines = {}
    for aspect, (drawn, parts) in splits.items():
        per_person = drawn["id"].value_counts()
        strangers = parts["val"][~parts["val"]["id"].isin(parts["train"]["id"])]
        spread = (per_person.min(), per_person.median(), per_person.max())
        lines[aspect] = {
            "images": len(drawn),
            "people": len(per_person),
            "per person (min-median-max)": "-".join(f"{n:g}" for n in spread if len(drawn)),
            "train/val": "/".join(str(len(part)) for part in parts.values()),
            "val only: people (images)": f"{strangers['id'].nunique()} ({len(strangers)})",
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("aspect")


def write_csvs(tables: Iterable[tuple[Path, pd.DataFrame]]) -> None:
    """Write the columns of a split CSV for every table; none is replaced before all are written.

    Lines end as the published script's do (CRLF), so that its files and these are equal.
    """
    with ExitStack() as stack:
        for path, rows in tables:
            temporary = stack.enter_context(atomic_write(path))
            rows.to_csv(temporary, columns=list(SPLIT_COLUMNS), index=False, lineterminator="\r\n")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(SplitConfig, __doc__)
    config = build_config(parser, SplitConfig, vars(parser.parse_args(argv)))
    setup_logging()

    root = Path(config.input)
    hand_info_file, photos = root / "HandInfo.csv", root / "Hands"
    splits = DRAWS[config.protocol](rows_by_aspect(read_hand_info(hand_info_file), config.input))
    if not any(len(drawn) for drawn, _ in splits.values()):
        raise UserError(f"{hand_info_file} lists no photo without accessories; nothing to split")
    if config.skip_missing:
        splits = without_missing(splits, photos)
    check_photos(pd.concat([drawn for drawn, _ in splits.values()]), photos, hand_info_file)

    tables = []
    for aspect, (drawn, parts) in splits.items():
        files = SplitFiles(root, aspect, config.protocol)
        tables.append((files.attributes, drawn))
        tables += [(files.split(name), part) for name, part in parts.items()]
    write_csvs(tables)
    print(split_summary(splits).to_string())
    print(f"wrote {len(tables)} files below {root}: sub_dataset/, trainval/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
