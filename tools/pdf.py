"""One PDF of the built book, pages in reading order: every fold open, in the light theme. Needs Chromium.

`python -m tools.pdf` takes the book that `make preview` built; `--profile cpu` that of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from pypdf import PdfWriter

from lib.record.files import PROFILES
from tools.book import Sources, contents

OPEN = """async () => {
  document.documentElement.dataset.theme = 'light';
  document.querySelectorAll('details').forEach(e => { e.open = true });
  document.querySelectorAll('img[loading=lazy]').forEach(e => { e.loading = 'eager' });
  await document.fonts.ready;
  await Promise.all([...document.images].map(e => e.decode().catch(() => {})));
}"""


def find_chromium() -> str | None:
    """Return the browser's program: that in CHROMIUM, else one of the usual names."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=PROFILES, help="whose run (default: the committed outputs)")
    profile = parser.parse_args().profile
    sources = Sources(profile or "cpu", committed=profile is None)
    pages = sources.built / "_build" / "html"
    chromium = find_chromium()
    if not (pages / "index.html").exists():
        print(f"no book in {pages}; build it first: make preview", file=sys.stderr)
        return 1
    if chromium is None:
        print("no Chromium found; install the package chromium, or name the program in CHROMIUM", file=sys.stderr)
        return 1
    names = re.findall(r'"(?:root|file)": "([^"]+)"', json.dumps(contents()))
    book = PdfWriter()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        for name in names:
            page.goto((pages / f"{name}.html").as_uri(), wait_until="load")
            page.evaluate(OPEN)
            part = Path(folder) / "page.pdf"
            page.pdf(path=part, format="A4", print_background=True, scale=0.8)
            title = re.sub(r"\s*[#¶—].*$", "", page.title()).strip()
            book.append(str(part), outline_item=title)
        browser.close()
    target = sources.built / "book.pdf"
    book.write(target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
