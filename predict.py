"""Score images with a trained model: what `python -m hyperiqa` and the installed command `hyperiqa` do."""

from hyperiqa.__main__ import command, main

__all__ = ["command", "main"]

if __name__ == "__main__":
    command()
