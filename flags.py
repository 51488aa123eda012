"""Flags from a typed config: a script's dataclass says once what it takes, with what defaults.

Nothing here, and nothing that it imports, takes time to load.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

AMP_MODES = ("auto", "off", "bf16", "fp16")
COMPILE_MODES = ("auto", "on", "off")
CACHE_MODES = ("auto", "ram", "disk", "none")
AUGMENT_MODES = ("auto", "photo", "batch")
DEVICES = ("auto", "cuda", "mps", "cpu")
# Photos at once where nothing is trained: on a CPU more are hardly faster, and fill the memory.
AT_ONCE_CPU, AT_ONCE_ELSE = 16, 128
AT_ONCE_HELP = f"default: {AT_ONCE_CPU} on a CPU, else {AT_ONCE_ELSE}"

REQUIRED: Any = dataclasses.MISSING  # the default of a flag that must be given

Config = TypeVar("Config")


def flag(
    default: Any,
    help_text: str,
    *,
    choices: Sequence[str] = (),
    nargs: int | str = 0,
    metavar: str = "",
) -> Any:
    """Return a dataclass field that `config_parser` turns into a command-line flag.

    `nargs` is of a field that is a tuple: how many values, or "+" for one or more. `metavar` is
    what `--help` shows for the value; without it FILE of a path, else the type. Of bools, one named
    no_<what> is a switch, others have a --no-<name> as well.
    """
    metadata = {"help": help_text, "choices": tuple(choices), "nargs": nargs, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def config_parser(config_class: type, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with a flag for each `flag` field of the dataclass `config_class`.

    A flag that is not given is absent from the namespace, so a caller can tell given from default.
    """
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if "help" not in field.metadata:
            continue
        kind = (typing.get_args(hints[field.name]) or (hints[field.name],))[0]
        options: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if kind is bool and field.name.startswith("no_"):
            options = {"action": "store_true"}
        elif kind is not bool:
            options = {"type": kind}
            if field.metadata["choices"]:
                options["choices"] = field.metadata["choices"]
            else:
                plain = "FILE" if kind is Path else kind.__name__.upper()
                options["metavar"] = field.metadata["metavar"] or plain
            if field.metadata["nargs"]:
                options["nargs"] = field.metadata["nargs"]
        if field.default is REQUIRED:
            options["required"] = True
        default = field.default
        text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        shown = "" if default in (None, REQUIRED, ()) else f" (default: {text})"
        parser.add_argument(f"--{field.name}", help=field.metadata["help"] + shown, **options)
    return parser


def build_config(
    parser: argparse.ArgumentParser, config_class: type[Config], values: dict[str, Any]
) -> Config:
    """Return `config_class(**values)`; a ValueError of its own checks ends in `parser.error`."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


def config_to_json(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass as JSON types: paths as text, tuples as lists."""
    values = dataclasses.asdict(config).items()
    return {
        k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for k, v in values
    }
