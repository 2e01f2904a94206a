"""Sources of images, score files, sheets, tests on many sets."""
