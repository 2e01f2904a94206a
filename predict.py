"""Score images with a trained model, as `python -m hyperiqa` and the installed `hyperiqa` do."""

from hyperiqa.__main__ import command, main

__all__ = ["command", "main"]

if __name__ == "__main__":
    command()
