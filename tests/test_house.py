"""The import rule of CONTRIBUTING.md: arrows point down, and nobody imports what a user types."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = {
    path.stem for path in ROOT.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()
}  # what a user types
PACKAGES = {
    "common": {"common"},
    "reading": {"common", "reading"},
    "comparing": {"common", "comparing", "metrics", "intervals"},
}
TOOLS = {"evaluate", "predict", "compare_logs", "search", "export", "certify", "benchmark", "make_demo_dataset"}


def modules():
    files = [*ROOT.glob("*.py"), *(p for name in (*PACKAGES, "scoring") for p in (ROOT / name).glob("*.py"))]
    return {str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path for path in files}


def imports():
    """Module -> the rooms of ours that it imports, wherever in it."""
    own, found = {name.split(".")[0] for name in modules()}, {}
    for name, path in modules().items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
        found[name] = names & own
    return found


def test_nothing_imports_what_a_user_types():
    assert len(ENTRIES) >= 9
    assert {name: found & ENTRIES for name, found in imports().items() if found & ENTRIES} == {}


def test_packages_import_only_what_lies_below_them():
    for name, found in imports().items():
        allowed = PACKAGES.get(name.split(".")[0])
        assert allowed is None or found <= allowed, name


def test_the_training_chain_needs_no_tool():
    chain, found = {"HyperIQASolver", "HyperIQASolver_swin", "train_swin", "train_resnet", "train_timm"}, imports()
    while more := set().union(*(found.get(name, set()) for name in chain)) - chain:
        chain |= more
    assert not chain & {"comparing", "scoring", *TOOLS}


def test_no_circles():
    """Top modules taken one by one; a package counts as one room. Imports for type checks alone don't run."""
    found = {}
    for name, rooms in imports().items():
        room = name.split(".")[0]
        found.setdefault(room, set()).update(rooms - {room} - ({"run_data"} if room == "run_log" else set()))
    while leaves := {room for room, below in found.items() if not below & found.keys()}:
        found = {room: below for room, below in found.items() if room not in leaves}
    assert found == {}
