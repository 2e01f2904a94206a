"""The reader of the synthetic demo set, which is made on first use."""

import re
from dataclasses import replace
from pathlib import Path

from hyperiqa.base.errors import UserError
from hyperiqa.datasets import authentic, records

# Drawing a scene takes longer than distorting it, and a model learns more from more images.
IMAGES_OF_A_SCENE = 4


class Demo(authentic.KonIQ10k):
    """The synthetic data set of make_demo_dataset.py, in KonIQ-10k's layout; made on first use."""

    name = "demo"
    expects = "what make_demo_dataset.py makes: koniq-10k/ and spaq-test/"
    # How many images of each split are made, where that is not the command's default.
    counts: dict[str, int] = {}

    def __init__(self, root: Path | None = None, *settings, **more):
        super().__init__(root, *settings, **more)
        if not self.root.exists():
            # It draws with modules that no other reader needs.
            from hyperiqa.datasets.demo_images import build_and_report

            try:
                build_and_report(self.root, **self.counts)
            except UserError:
                # Where the folder is there, another process has made it meanwhile.
                if not self.root.exists():
                    raise
        self.spaq_root = self.root / "spaq-test"
        self.root = self.root / "koniq-10k"

    def rows(self) -> list[records.Row]:
        rows = super().rows()
        for i, row in enumerate(rows):
            # Such as train_0012_jpeg_3.jpg.
            if match := re.fullmatch(r"([a-z]+)_(\d+)_.+_\d\.jpg", Path(row.image).name):
                # No split tears the images of a scene apart.
                rows[i] = replace(row, group=f"{match[1]} {int(match[2]) // IMAGES_OF_A_SCENE}")
        return rows
