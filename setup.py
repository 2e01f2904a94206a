"""`pip install .`: the package `hyperiqa`, what scoring needs of this tree. Training needs no installation."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common.packaging import write_package  # noqa: E402


class FromTheTree(build_py):
    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)  # what an older version had
        write_package(Path(self.build_lib) / "hyperiqa")


setup(packages=["hyperiqa"], package_dir={"hyperiqa": "."}, cmdclass={"build_py": FromTheTree})
