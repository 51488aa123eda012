"""The table of measures: one row each. Whatever computes, prints, draws or compares loops over it.

A new measure is a row here and its function. `needs` says what the function is given:

classes       `classes.ClassPredictions` of any task
two classes   the same, of tasks with exactly two classes
people        the same, of tasks whose classes are people (identity)
ages          the same, of tasks whose classes are age ranges
pairs         `pairs.PairScores`: similarities of all pairs of photos
galleries     the same, where gallery draws exist (unseen people)
calibration   the same, where calibration people exist (test split of unseen people)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dataset_11k import TASKS


@dataclass(frozen=True)
class Unit:
    """How a value is printed: multiplied by `scale`, with `digits` decimals, then `suffix`."""

    suffix: str = ""
    scale: float = 1.0
    digits: int = 3
    axis: str = ""  # label of a chart's axis

    @property
    def is_percent(self) -> bool:
        """Whether values are fractions in [0, 1]."""
        return self.suffix.endswith("%")

    def format(self, value: float | None, *, suffix: bool = True) -> str:
        """Return the value with its unit; an en dash for None and NaN."""
        if value is None or value != value:
            return "–"
        return f"{self.scale * value:.{self.digits}f}{self.suffix if suffix else ''}"

    def format_interval(self, low: float | None, high: float | None) -> str:
        """Return `low to high` with the unit; an en dash if an end is unknown."""
        ends = self.format(low, suffix=False), self.format(high, suffix=False)
        return "–" if "–" in ends else f"{ends[0]} to {ends[1]}{self.suffix}"


PERCENT = Unit("\u00a0%", 100, 1, "share")
YEARS = Unit("\u00a0years", 1, 1, "years")
BITS = Unit("\u00a0bits", 1, 3, "bits")
NATS = Unit("\u00a0nats", 1, 3, "nats")
COUNT = Unit("", 1, 0, "count")
NUMBER = Unit("", 1, 3)


@dataclass(frozen=True)
class Measure:
    """One row of `MEASURES`.

    key: in metrics.json, results.csv.
    name: for a reader.
    explanation: one or two sentences for a reader: what it is, what is good.
    function: returns the value, or, of a headline, a `bootstrap.PeopleMeasure`.
    needs: see above.
    headline: gets a 95 % confidence interval over people, differences to baselines, groups.
    block: key of the nested object in metrics.json that holds it; empty: none.
    """

    key: str
    name: str
    explanation: str
    function: Callable[[Any], Any]
    needs: str = "classes"
    unit: Unit = PERCENT
    higher_is_better: bool = True
    headline: bool = False
    block: str = ""
