"""Data flows one way: which part of the package may import which; and the tests mirror its rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "belay_cli"

# part -> the parts it may import, beside errors, options, words and _version, which anyone may
ANYONE = {"errors", "options", "words", "_version"}
MAY_IMPORT: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "words": set(),
    "options": set(),
    "rules": set(),
    "training": {"rules"},
    "storage": set(),
    "formats": {"storage"},
    "checkpoints": {"formats", "storage"},
    "record": {"checkpoints", "rules", "storage"},
    "planning": {"checkpoints", "formats", "record", "rules", "storage"},
    "engine": {"checkpoints", "formats", "planning", "storage"},
    "output": {"checkpoints", "engine", "formats", "planning", "record", "storage"},
    "verification": {"checkpoints", "engine", "formats", "planning", "record", "rules", "storage"},
    "sweeping": {"formats", "rules", "storage"},
    "show": {"checkpoints", "formats", "planning", "record", "rules", "sweeping", "verification"},
    "publish": {"checkpoints", "formats", "planning", "record", "rules", "show", "storage", "verification"},
    "api": {
        *("checkpoints", "engine", "formats", "output", "planning", "publish", "record", "rules", "show", "storage"),
        *("sweeping", "verification"),
    },
    "cli": {"api", "checkpoints", "engine", "planning", "publish", "rules", "show", "storage", "sweeping"},
    "__init__": {"api", "rules"},
    "__main__": {"cli"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("belay_cli"):
            names = [node.module] if node.module != "belay_cli" else [f"belay_cli.{a.name}" for a in node.names]
            found |= {name.split(".")[1] for name in names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("belay_cli.")}
    return found


def modules_of(part: str) -> list[Path]:
    return sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_part_imports_only_what_it_may(part: str) -> None:
    for path in modules_of(part):
        assert imports(path) <= MAY_IMPORT[part] | {part} | ANYONE, path


def test_every_part_is_listed() -> None:
    parts = {entry.stem for entry in PACKAGE.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").exists()}
    assert parts == set(MAY_IMPORT)


def test_the_arithmetic_imports_nothing_of_the_package() -> None:
    assert imports(PACKAGE / "engine/contract.py") == set()


def test_only_the_command_line_catches_everything() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception":
                # Drivers of fsspec raise whatever the libraries under them raise, and so does a user's function.
                others = ("storage/remote/fsspec.py", "api/sweep.py")
                assert path in (PACKAGE / "cli/__init__.py", *(PACKAGE / other for other in others))


@pytest.mark.parametrize("module", ["belay_cli.rules", "belay_cli.checkpoints", "belay_cli.planning", "belay_cli.cli"])
def test_torch_is_imported_only_by_a_replay(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_importing_the_package_costs_nothing() -> None:
    program = "import sys, belay_cli; sys.exit('numpy' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("init", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: str(path.parent.name))
def test_the_map_of_a_room_names_what_is_in_it(init: Path) -> None:
    """The names that begin lines of its docstring, two spaces before what is said of them, are all there are."""
    lines = (ast.get_docstring(ast.parse(init.read_text())) or "").splitlines()[1:]
    named = {m[1] for line in lines if (m := re.match(r"\s*([a-z_0-9]+)\s{2,}\S", line))}
    rooms = {path.parent.name for path in init.parent.glob("*/__init__.py")}
    there = {path.stem for path in init.parent.glob("*.py")} | rooms
    assert named == there - {"__init__", "__main__", "_version"}


def test_no_test_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert {str(path): lines for path, lines in lengths.items() if lines > 500} == {}


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_every_room_has_its_tests(room: str) -> None:
    assert [*(TESTS / room).rglob("test_*.py"), *TESTS.glob(f"test_{room}.py")]
