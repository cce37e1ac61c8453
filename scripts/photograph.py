"""Takes the pictures of a page of mixer.report in docs/figures, with a browser that is installed.

    python -m scripts.photograph runs/report.html docs/figures

It writes report_WIDTH_SCHEME.png, after the name of the page: one screen of the model at work, for a phone and for a
desk, in light and in dark.
"""

import argparse
import io
import pathlib
import shutil
import sys

from PIL import Image

_SCREENS = {390: 844, 1280: 900}  # width and height in pixels
_COLOURS = 128  # of the palette, which makes a picture a third as large
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Takes four pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path, metavar="PAGE", help="the page, an HTML file")
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER", help="where the pictures go; made if need be")
    args = parser.parse_args()
    if not args.page.is_file():
        parser.error(f"{args.page} is no file")
    try:
        from playwright import sync_api  # for which --help does not wait
    except ImportError:
        sys.exit("error: playwright is not installed: make install-dev")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: none of {', '.join(BROWSERS)} is installed: apt-get install chromium")
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: {args.folder} is no folder and cannot become one ({error})")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for width, height in _SCREENS.items():
            for scheme in ("light", "dark"):
                page = started.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(args.page.resolve().as_uri())
                if not page.query_selector("#answer"):
                    sys.exit(f"error: {args.page} has no model at work; see there why")
                page.wait_for_selector("#answer li")
                page.evaluate("document.getElementById('model').scrollIntoView()")
                taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                taken.quantize(_COLOURS).save(args.folder / f"{args.page.stem}_{width}_{scheme}.png", optimize=True)
                page.close()


if __name__ == "__main__":
    main()
