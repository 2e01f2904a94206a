"""The part of this tree that scoring needs, as a package of one name: in another project nothing of it clashes with a
module of that project's own. `setup.py` installs it, `hubconf.py` loads it."""

import ast
import os
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
INIT = '''"""Blind image quality assessment: one image in, one score out. Made by common/packaging.py of the trainer."""

from {name}.common import VERSION as __version__
from {name}.inference import QualityModel, Scored, load

__all__ = ["QualityModel", "Scored", "__version__", "load"]
'''


def file_of(module: str) -> Path | None:
    """The file of a module of this tree, as `folders` or `reading.images`; None: it is none of ours."""
    place = HERE.joinpath(*module.split("."))
    choices = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in choices if path.is_file()), None)


def imports(source: str) -> list[tuple[int, list[str]]]:
    """(line, modules of this tree) of every import of ours, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        if own := [name for name in names if file_of(name)]:
            found.append((node.lineno, own))
    return found


def needed(entry: str) -> dict[str, Path]:
    """The modules that importing `entry` can ever import, packages among them -> their files."""
    found, waiting = dict[str, Path](), [entry]
    while waiting:
        module = waiting.pop()
        if module not in found and (path := file_of(module)):
            found[module] = path
            waiting += [each for _, names in imports(path.read_text(encoding="utf-8")) for each in names]
            waiting += [module.rpartition(".")[0]] if "." in module else []
    return found


def write_package(folder: Path, entry: str = "inference") -> None:
    """Write the package into `folder`, whose name it gets: the same files with their imports under that name."""
    texts = {folder / "__init__.py": INIT.format(name=folder.name)}
    for path in needed(entry).values():
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, _ in imports("\n".join(lines)):
            line = re.sub(r"^(\s*)from ", rf"\1from {folder.name}.", lines[number - 1])
            lines[number - 1] = re.sub(r"^(\s*)import ", rf"\1from {folder.name} import ", line)
        texts[folder / path.relative_to(HERE)] = "\n".join(lines)
    for target, text in texts.items():
        if not (target.is_file() and target.read_text(encoding="utf-8") == text):
            target.parent.mkdir(parents=True, exist_ok=True)
            whole = target.with_suffix(f".{os.getpid()}")
            whole.write_text(text, encoding="utf-8")
            whole.replace(target)  # another process may be reading it
