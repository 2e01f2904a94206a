"""Makes the pictures of README.md and docs/: trains the demo's model, runs commands, and photographs their pages.

    mkdir work && python docs/make_pictures.py work     # the next time, the model in work/ is used again

It needs plotly, playwright and a Chromium."""  # noqa: E501

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).resolve().with_name("pictures")
# Picture -> the page, the place in it, width and height in CSS pixels, pixels for each of them.
SHOTS = {
    "sheet": ("sheet.html", "h1", 1000, 620, 1),
    "sheet_phone": ("sheet.html", "h1", 390, 700, 1.5),
    "report": ("report.html", "#s4", 1000, 620, 1),
    "report_phone": ("report.html", "#s4", 390, 700, 1.5),
}


def run(folder: Path, script: str, words: str) -> None:
    """Run a script of this checkout in a folder."""
    subprocess.run(
        [sys.executable, PICTURES.parents[1] / script, *words.split()], cwd=folder, check=True
    )


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    # A run that is there and finished is not trained again.
    run(
        folder,
        "train_timm.py",
        "--dataset demo --dataset_path demo --log_dir logs --checkpoint_dir checkpoints --no_cache "
        "--run_name demo --resume auto",
    )

    # The demo's best image, sharp on the left and blurred on the right.
    rows = (folder / "logs" / "demo_predictions.csv").read_text().splitlines()[1:]
    _, best, _, _ = max((row.split(",") for row in rows), key=lambda row: float(row[2]))
    photo = Image.open(next((folder / "demo").rglob(Path(best).name)))
    right = (photo.width // 2, 0, *photo.size)
    photo.paste(photo.filter(ImageFilter.GaussianBlur(3)).crop(right), right)
    photo.save(folder / "photo.png")
    run(folder, "predict.py", "checkpoints/demo photo.png --map maps")
    Image.open(next((folder / "maps").iterdir())).convert("RGB").save(PICTURES / "map.jpg")

    run(folder, "predict.py", "checkpoints/demo demo/koniq-10k/test --sheet sheet.html")
    run(folder, "report.py", "logs/demo.jsonl --output report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, (page_name, place, width, height, scale) in SHOTS.items():
            page = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=scale
            )
            page.goto(f"{folder.as_uri()}/{page_name}")
            page.evaluate(f"document.querySelector('{place}').scrollIntoView()")
            # Plots and pictures are drawn when they come into sight.
            page.wait_for_timeout(4000)
            page.screenshot(path=PICTURES / f"{name}.jpg", quality=70)


if __name__ == "__main__":
    main()
