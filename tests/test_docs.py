"""What README.md, CONTRIBUTING.md and docs/ name exists: files, headings, flags of the commands."""

import re

import pytest
from processes import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
# Flags of torchrun, pip, pytest, ruff, Slurm and the Hub's command.
OTHERS = set(
    "--nproc_per_node --nnodes --rdzv_backend --rdzv_endpoint --max-restarts --maxprocesses --runslow --pdb "
    "--check --no-deps --flag --array --cpus-per-task --mem --requeue".split()
)
# Files of the reader's own.
ELSEWHERE = ("tests/x.py", "options.py", "models.py")


def anchors(page):
    """The addresses of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_flags_that_are_named_exist(page):
    text = page.read_text()
    for name in re.findall(r"(?:python |`)((?:\w+/)*\w+\.py)\b", text):
        places = (ROOT, ROOT / "hyperiqa", ROOT / "docs")
        assert any((place / name).exists() for place in places) or name in ELSEWHERE, name
    for name in re.findall(r"@(recipes/[\w.]+)", text):
        assert (ROOT / name).exists(), name
    sources = [*ROOT.glob("*.py"), *(ROOT / "hyperiqa").rglob("*.py")]
    known = set(re.findall(r"--[a-z][\w-]*", "".join(source.read_text() for source in sources)))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert named <= known | OTHERS, named - known - OTHERS


def test_pictures_are_light():
    sizes = [path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()]
    assert max(sizes) < 200_000 and sum(sizes) < 700_000
