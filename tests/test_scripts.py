"""Every script as a command: --help and wrong flags; importing one has no effect."""

from __future__ import annotations

import importlib

import pytest

# Script -> flags with a value out of range, and part of the message.
WRONG_FLAGS = {
    "app": ("", "--checkpoint or --gallery"),
    "benchmark": ("--rounds 0", "--rounds"),
    "compare": ("--backbones swin_t --lr -1", "--lr"),
    "dataset_11k_analyze": ("--input", "expected one argument"),
    "dataset_11k_split": ("--protocol none", "invalid choice: 'none'"),
    "dataset_11k_synthetic": ("--identities none", "invalid int value: 'none'"),
    "export": ("--checkpoint x --output y.pth", "--output must end in .onnx or .pt2"),
    "gallery": ("verify hands.sqlite anna", "verify takes 2 inputs, not 1"),
    "predict": ("--checkpoint x --top_k 0 photo.jpg", "--top_k must be above 0"),
    "report": ("", "--results"),
    "test": ("--checkpoint x --batch_size 0", "--batch_size"),
    "train": ("--lr -1", "--lr"),
}


@pytest.mark.parametrize("script", WRONG_FLAGS)
def test_help_shows_a_runnable_command(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--help"])
    assert stop.value.code == 0
    assert f"python {script}.py" in capsys.readouterr().out


@pytest.mark.parametrize("script", WRONG_FLAGS)
@pytest.mark.parametrize("unknown", ["", " --no_such_flag"])
def test_a_wrong_flag_exits_with_2(
    script: str, unknown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, message = WRONG_FLAGS[script]
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main((flags + unknown).split())
    assert stop.value.code == 2
    assert message in (error := capsys.readouterr().err) or unknown.strip() in error
