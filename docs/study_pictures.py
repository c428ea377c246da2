"""Make docs/images/study-NAME.png, the first picture of the page of runs/study-NAME.

    python docs/study_pictures.py runs/study-NAME ...

The picture is cut out of the study's report.html with Chromium.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from screenshots import IMAGES, QUIET


def main(folders: list[str]) -> int:
    """Take the pictures; return the exit code."""
    if not folders:
        print("usage: python docs/study_pictures.py runs/study-NAME ...", file=sys.stderr)
        return 2
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        page = browser.new_page(viewport={"width": 620, "height": 800}, device_scale_factor=1.75)
        for folder in map(Path, folders):
            page.goto((folder / "report.html").resolve().as_uri())
            name = IMAGES / f"{folder.name}.png"
            page.locator("figure svg").first.screenshot(path=name)
            print(f"docs/images/{name.name} written")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
