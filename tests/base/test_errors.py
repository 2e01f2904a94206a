import ast
import re

import pytest

from hyperiqa.base.errors import counted
from hyperiqa.base.files import CHECKOUT


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (1, ("image",), "1 image"),
        (0, ("image",), "0 images"),
        (2010, ("test image",), "2,010 test images"),
        (1, ("image is", "images are"), "1 image is"),
        (2, ("image is", "images are"), "2 images are"),
        (3, ("process", "processes"), "3 processes"),
    ],
)
def test_one_is_no_plural(number, words, text):
    assert counted(number, *words) == text


# Lines of logs that older versions read, counts that are never one, and text before the word.
LEFT = {
    "sets.py: len(data.records) images",
    "sets.py: split images",
    "records.py: part images",
    "benchmark.py: counts images",
    "description.py: MOST_PATCH_PIXELS // patch_size ** 2 patches",
    "formats.py: len(header) column names",
    "precision.py: speeds['fp32'] patches",
    "synthetic.py: len(pairs) contrast images",
    "tables.py: FEW_IMAGES images",
    "certificate_checks.py: which_code runs",
    "calibration.py: FEW images",
    "calibration.py: FEWEST images",
    # Fewer than 20 images have no calibration.
    "calibration.py: self.images images",
    "calibrating.py: FEWEST images",
    "score_files.py: MOST_COMPARED images",
    "differences.py: fewest seeds",
    "differences.py: len(matches) runs",
    "differences.py: len(keys) images",
}


def test_no_message_counts_by_itself():
    """A number before a plural reads `1 images` where it is one: `counted` knows better."""
    nouns = "images|runs|files|pairs|pictures|scores|rows|threads|crops|patches|rounds|seeds"
    found = set()
    for path in [*CHECKOUT.glob("*.py"), *CHECKOUT.glob("hyperiqa/**/*.py")]:
        for text in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = text.values if isinstance(text, ast.JoinedStr) else []
            for value, words in zip(parts, parts[1:]):
                if isinstance(value, ast.FormattedValue) and isinstance(words, ast.Constant):
                    match = re.match(rf" (\w+ )?({nouns}|column names)\b(?!=)", words.value)
                    if match:
                        found.add(f"{path.name}: {ast.unparse(value.value)}{match[0]}")
    assert found <= LEFT, found - LEFT
