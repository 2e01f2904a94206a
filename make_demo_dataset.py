"""Makes `demo`, a small synthetic image quality data set, so that training can be tried without any download.

    python make_demo_dataset.py                                    # writes demo/ beside this script
    python make_demo_dataset.py OUT --seed 7 --train 200 --test 60 --spaq 48

OUT gets the layout of the real data sets, so the same readers read it: OUT/koniq-10k like KonIQ-10k,
OUT/spaq-test like SPAQ. Every image is a 512x384 JPEG of its own scene with one distortion at one of five
levels (a few have none); the score, 0..100, higher is better, follows from the distortion alone. The scenes
are dead leaves, a model with the statistics of natural images. The SPAQ-like ones are darker, warmer, coarser
and rated on another scale, so that the cross test is one. Same seed and counts, same bytes in every file. The
figures reached on it say nothing about real photos."""  # noqa: E501

from pathlib import Path

from hyperiqa.base.command_line import Flags, run_tool
from hyperiqa.datasets.demo_images import KINDS, build_and_report


def main(argv: list[str] | None = None) -> None:
    flags = Flags(__doc__)
    beside = Path(__file__).resolve().with_name("demo")
    flags.words("out", "new folder (default: demo/ here)", nargs="?", type=Path, default=beside)
    flags.count("--seed", 7, "of everything random", least=0)
    for name, count in (("train", 200), ("test", 60), ("spaq", 48)):
        flags.count(
            f"--{name}",
            count,
            "number of images, one of each distortion at least",
            least=len(KINDS),
        )
    build_and_report(**vars(flags.parse(argv)))


if __name__ == "__main__":
    run_tool(main)
