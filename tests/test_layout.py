"""Which file may import which: downwards only, no circle, no folder imports a script."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("utils", "dataset_11k", "model", "data", "engine", "measures", "pages")  # upwards
FILES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
    for pattern in ("*.py", *(f"{room}/*.py" for room in (*ROOMS, "synthetic")))
    for path in REPOSITORY.glob(pattern)
}


@functools.cache
def imported_by(module: str) -> set[str]:
    """Return the modules of this repository that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & FILES.keys()


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_imports_go_downwards() -> None:
    for module in FILES:
        room = room_of(module)
        if room == "synthetic":
            assert {room_of(other) for other in imported_by(module)} <= {
                *("synthetic", "dataset_11k", "utils")
            }
        elif room in ROOMS:
            allowed = ROOMS[: ROOMS.index(room) + 1]
            assert {room_of(other) for other in imported_by(module)} <= set(allowed), module


def test_no_circle() -> None:
    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        for other in imported_by(module):
            visit(other, (*path, module))

    for module in FILES:
        visit(module, ())
