"""The reader of the synthetic demo set, which is made on first use."""

import subprocess
import sys
from pathlib import Path

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import HERE
from hyperiqa.datasets.authentic import KonIQ10k


class Demo(KonIQ10k):
    """The synthetic data set of make_demo_dataset.py, in KonIQ-10k's layout; made on first use."""

    name = "demo"
    expects = "what make_demo_dataset.py makes: koniq-10k/ and spaq-test/"

    def __init__(self, root: Path | None = None, *settings, **more):
        super().__init__(root, *settings, **more)
        if not self.root.exists():
            # A process of its own: the generator is an entry script, and those are never imported.
            made = subprocess.run(
                [sys.executable, HERE / "make_demo_dataset.py", self.root], check=False
            )
            if made.returncode and not self.root.exists():  # another process may have made it first
                raise UserError(f"demo: make_demo_dataset.py could not make {self.root}")
        self.spaq_root = self.root / "spaq-test"
        self.root = self.root / "koniq-10k"
