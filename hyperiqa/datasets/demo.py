"""The reader of the synthetic demo set, which is made on first use."""

from pathlib import Path

from hyperiqa.base.errors import UserError
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
    # It draws with modules that no other reader needs.
    from hyperiqa.datasets.demo_images import build_and_report

    try:
        build_and_report(root)
    except UserError:
        # Where the folder is there, another process has made it meanwhile.
        if not root.exists():
            raise
