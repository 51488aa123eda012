"""Flags: defaults, choices, help, required ones, and the way to JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from utils import REQUIRED, build_config, build_parser, config_to_json, flag


@dataclass(frozen=True)
class ExampleConfig:
    """A config with a flag of every kind."""

    data: Path = flag(Path("here.csv"), "a path")
    weights: Path | None = flag(None, "an optional path")
    epochs: int = flag(50, "a whole number")
    lr: float = flag(8e-4, "a number")
    device: str = flag("auto", "one of a few", choices=("auto", "cpu"))
    output: Path = flag(Path("out"), "a folder", metavar="DIR")
    crop: tuple[int, ...] = flag((1, 2), "two numbers", nargs=2)
    warmup: bool = flag(True, "a switch that is on")
    resume: bool = flag(False, "a switch that is off")
    derived: int = 3

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"--epochs {self.epochs}: expected at least 1")


def parse(*argv: str) -> ExampleConfig:
    parser = build_parser(ExampleConfig, "An example.")
    return build_config(parser, ExampleConfig, vars(parser.parse_args(argv)))


def test_no_flags_give_the_defaults() -> None:
    assert parse() == ExampleConfig()


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--data", "x/y.csv"], "data", Path("x/y.csv")),
        (["--weights", "w.pth"], "weights", Path("w.pth")),
        (["--epochs", "3"], "epochs", 3),
        (["--lr", "1e-5"], "lr", 1e-5),
        (["--device", "cpu"], "device", "cpu"),
        (["--crop", "8", "9"], "crop", (8, 9)),
        (["--no-warmup"], "warmup", False),
        (["--warmup"], "warmup", True),
        (["--resume"], "resume", True),
        (["--resume", "--no-resume"], "resume", False),
    ],
)
def test_a_flag_sets_its_field_alone(argv: list[str], field: str, value: Any) -> None:
    config = parse(*argv)
    found = getattr(config, field)
    assert (found, type(found)) == (value, type(value))
    assert config == ExampleConfig(**{field: value})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),  # no abbreviations
        (["--derived", "3"], "unrecognized arguments: --derived 3"),
        (["--epochs", "1.5"], "argument --epochs: invalid int value: '1.5'"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--crop", "8"], "argument --crop: expected 2 arguments"),
        (["--warmup", "False"], "unrecognized arguments: False"),
        (["--epochs", "0"], "--epochs 0: expected at least 1"),  # the config's own check
    ],
)
def test_a_wrong_flag_ends_with_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_each_default_once() -> None:
    text = build_parser(ExampleConfig, "An example.").format_help()
    assert text.count("(default: 50)") == 1
    assert text.count("(default: True)") == 1
    assert "(default: None)" not in text
    assert "--derived" not in text
    assert all(shown in text for shown in ("--data FILE", "--output DIR", "--epochs INT"))


def test_flags_not_given_are_absent() -> None:
    parser = build_parser(ExampleConfig, None)
    assert vars(parser.parse_args(["--lr", "0.1"])) == {"lr": 0.1}


@dataclass(frozen=True)
class RequiredConfig:
    """A config with a flag that must be given."""

    checkpoint: Path = flag(REQUIRED, "a file")


def test_a_required_flag(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser(RequiredConfig, None)
    assert vars(parser.parse_args(["--checkpoint", "x"])) == {"checkpoint": Path("x")}
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([])
    assert stop.value.code == 2
    assert "the following arguments are required: --checkpoint" in capsys.readouterr().err
    assert "default" not in parser.format_help()


def test_config_to_json_is_plain_json() -> None:
    values = config_to_json(ExampleConfig(weights=Path("a") / "b", crop=(8, 9)))
    assert json.loads(json.dumps(values)) == values
    assert values["weights"] == str(Path("a") / "b")
    assert values["crop"] == [8, 9]
    assert values["warmup"] is True
