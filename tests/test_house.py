"""The import rule of CONTRIBUTING.md: a room of the package imports only from the rooms to its left."""

import ast

from hyperiqa.base.files import CHECKOUT

ROOMS = ("base", "stats", "images", "datasets", "model", "training", "scoring", "runs", "pages")
COMMANDS = {path.stem for path in CHECKOUT.glob("*.py")}


def imported(path):
    """The modules that a file imports, wherever in it; a relative import as `.`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_room_imports_only_from_the_rooms_to_its_left():
    assert {path.parent.name for path in (CHECKOUT / "hyperiqa").glob("*/__init__.py")} == set(
        ROOMS
    )
    for number, room in enumerate(ROOMS):
        allowed = {f"hyperiqa.{name}" for name in ROOMS[: number + 1]}
        for path in (CHECKOUT / "hyperiqa" / room).rglob("*.py"):
            for module in imported(path):
                if module.startswith("hyperiqa."):
                    assert ".".join(module.split(".")[:2]) in allowed, f"{path}: {module}"


def test_the_package_imports_absolutely_and_nothing_of_the_top():
    for path in (CHECKOUT / "hyperiqa").rglob("*.py"):
        assert not {module.split(".")[0] for module in imported(path)} & {"", *COMMANDS}, path
