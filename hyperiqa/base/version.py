"""What any program needs; it imports nothing of ours."""

VERSION = "0.8.0"
