"""Make `demo`, a small set of generated pictures with quality scores.

  python make_demo_dataset.py              # writes demo/ beside this script
  python make_demo_dataset.py OUT --train 960 --test 48 --spaq 48

A model that is trained on it judges technical distortions: blur, noise,
compression, wrong exposure and the like. It is no substitute for a model that
is trained on the opinions of people.

OUT gets the layout of the real data sets: OUT/koniq-10k is laid out like
KonIQ-10k, OUT/spaq-test like SPAQ. Every image is a 512x384 JPEG of a scene,
with one distortion or a pair of them at one of five levels; a few have none.
Four images in a row show the same scene. The scenes have the statistics of
photographs: objects of all sizes, textures, terrain, light, lettering and a
depth of field. The score, 0 to 100, higher is better, compares the image with
its pristine scene: 100 * (1 - sqrt(GMSD / 0.3)), GMSD being the gradient
magnitude similarity deviation, as about 105 raters with some disagreement
would give it. The SPAQ-like images are darker, warmer, coarser and rated on
another scale, so that testing on them is a cross test. The same seed and
counts give the same bytes in every file."""

from pathlib import Path

from hyperiqa.base.command_line import Flags, run_tool


def main(argv: list[str] | None = None) -> None:
    flags = Flags(__doc__)
    flags.words(
        "out",
        "new folder for the set (default: demo beside this script)",
        nargs="?",
        type=Path,
        default=Path(__file__).resolve().with_name("demo"),
    )
    flags.count("--seed", 7, "seed of everything random", least=0)
    for name, count, use in (
        ("train", 960, "training"),
        ("test", 48, "testing"),
        ("spaq", 48, "the cross test"),
    ):
        flags.count(f"--{name}", count, f"number of images for {use}", least=8)
    options = flags.parse(argv)
    # This imports scipy, which takes long: a mistake in the flags is reported before.
    from hyperiqa.datasets.demo_images import build_and_report

    build_and_report(**vars(options))


if __name__ == "__main__":
    run_tool(main)
