"""Score images with a trained model: what `python -m hyperiqa` does."""

from hyperiqa.__main__ import main
from hyperiqa.base.command_line import run_tool

__all__ = ["main"]

if __name__ == "__main__":
    run_tool(main)
