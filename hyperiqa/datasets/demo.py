"""The reader of the synthetic demo set, which is made on first use."""

import os
import subprocess
import sys
from pathlib import Path

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import CHECKOUT
from hyperiqa.datasets.authentic import KonIQ10k


class Demo(KonIQ10k):
    """The synthetic data set of make_demo_dataset.py, in KonIQ-10k's layout; made on first use."""

    name = "demo"
    expects = "what make_demo_dataset.py makes: koniq-10k/ and spaq-test/"

    def __init__(self, root: Path | None = None, *settings, **more):
        super().__init__(root, *settings, **more)
        if not self.root.exists():
            _make(self.root)
        self.spaq_root = self.root / "spaq-test"
        self.root = self.root / "koniq-10k"


def _make(root: Path) -> None:
    # The generator runs in a process of its own. Its workers are fresh processes, and a fresh
    # process imports the main module of the program that starts it: a user's script that is not
    # guarded by __name__ would run again in each worker.
    search_path = filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}
    # -P keeps Python from importing the user's modules of the working directory for ours.
    command = [sys.executable, "-P", "-m", "hyperiqa.datasets.demo_images", str(root)]
    status = subprocess.run(command, env=environment, check=False).returncode
    # Where the generator failed but the folder is there, another process has made it meanwhile.
    if status != 0 and not root.exists():
        raise UserError(f"demo: make_demo_dataset.py could not make {root}")
