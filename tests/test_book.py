"""Every page of the built book in headless Chromium, served from this machine: what a reader would stumble over.

The book is the one in BOOK_HTML, else the newest below runs/, else one built from the outputs in the tree or
from a smoke run. Without Chromium the browser tests are skipped; REQUIRE_BROWSER=1 makes that a failure.
"""

from __future__ import annotations

import base64
import doctest
import functools
import html.parser
import http.server
import json
import math
import os
import re
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from axe_playwright_python.sync_playwright import Axe

from lib.ground import nets
from lib.ground.diffusion import linear, scaled_linear
from lib.ground.toy2d import eight_gaussians
from lib.papers.dds import method as dds
from lib.papers.dds.gaussian import GaussianWorld
from lib.papers.rdmd import method as rdmd
from lib.papers.rdmd.toy import judge_modes
from lib.papers.sdft import method as sdft
from lib.record.files import ROOT, read_results
from tools.book import FOLDERS, Sources, companion_data, contents, recorded
from tools.notebooks import paths
from tools.pdf import find_chromium

BOOK = ROOT / "book"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]

# ---------------------------------------------------------------------------------------------- without a built book


def toc_files() -> set[str]:
    return set(re.findall(r'"(?:file|root)": "([^"]+)"', json.dumps(contents())))


def test_every_notebook_and_page_is_in_the_toc():
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*/*.py")}
    pages = {str(path.relative_to(BOOK).with_suffix("")) for path in BOOK.rglob("*.md") if "_static" not in path.parts}
    assert toc_files() == notebooks | pages


def test_chapters_are_folders_and_papers_come_as_the_claims_name_them():
    parts = {part["caption"]: part["chapters"] for part in contents()["parts"]}
    named = [chapter["file"] for chapter in parts["Papers"]]
    assert named[:5] == ["rdmd", "ant", "sdft", "dds", "ladiffgan"]
    for chapters in parts.values():
        for chapter in chapters:
            for section in chapter.get("sections", []):
                folder = paths()[section["file"].removeprefix("notebooks/")].parent.name
                assert folder == FOLDERS.get(chapter["file"], chapter["file"])


def test_config_names_no_other_host():
    for name in ("_config.yml", "_static/custom.css", "_static/companion.js"):
        assert not re.search(r"https?://", (BOOK / name).read_text(encoding="utf-8")), name


def test_vendored_scripts_keep_their_licences():
    for folder in sorted(path for path in (BOOK / "_static" / "vendor").iterdir() if path.is_dir()):
        assert (folder / "LICENSE").stat().st_size > 500, folder


def test_pages_use_numbers_and_claims_that_exist():
    entries = yaml.safe_load((ROOT / "claims.yaml").read_text(encoding="utf-8"))
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*/*.py")}
    for page in sorted(BOOK.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"^```\{claim\} (\w+)", text, flags=re.MULTILINE)) <= set(entries), page.name
        assert set(re.findall(r'num\["(\w+)"\]', text)) <= notebooks, page.name


def test_a_number_that_the_record_has_and_a_run_of_another_size_lacks_is_named_as_such():
    result = read_results(ROOT / "results" / "record" / "12_rdmd_start.json")
    gone, kept = list(result["numbers"])[:2]
    del result["numbers"][gone]
    data = json.loads(companion_data(Sources("smoke", committed=False), {"12_rdmd_start": result}, {}))
    numbers = data["results"]["12_rdmd_start"]["numbers"]
    assert numbers[gone] == "(not measured here)"
    assert numbers[kept] == result["numbers"][kept]["text"]


@pytest.mark.parametrize("page", ["rdmd", "ant", "sdft", "dds", "ladiffgan"])
def test_answers_of_exercises_compute_what_they_say(page):
    found = doctest.testfile(str(BOOK / f"{page}.md"), module_relative=False)
    assert found.attempted > 4
    assert found.failed == 0


CHECK = {"rule": "gain", "delta": 1.0, "mean": 2.0, "low": 0.5, "high": 3.5, "n": 9, "values": [2.0] * 9}


def strip(**changed):
    sys.path.insert(0, str(BOOK / "_ext"))
    import forest

    return forest.strip(CHECK | changed)


def test_a_strip_shows_interval_bounds_and_the_ground_where_the_rule_holds():
    at = strip()
    zero, delta = at["ticks"]
    assert zero < at["interval"][0] < delta < at["mean"] < at["interval"][1] < 100
    assert at["ground"] == (zero, pytest.approx(100 - zero))
    assert at["dots"] == []
    below = strip(rule="below", value=1.05, interval="log", mean=1.01, low=1.0, high=1.02)
    assert below["ground"][0] == 0
    assert below["mean"] < below["ticks"][0] == pytest.approx(sum(below["ground"]))
    equal = strip(rule="equal", value=2.0, delta=2.0)
    assert equal["ground"][0] < equal["interval"][0] < equal["interval"][1] < sum(equal["ground"])


def test_a_strip_of_few_replicates_has_their_dots_and_one_of_a_computation_no_interval():
    assert len(strip(n=3, values=[1.0, 2.0, 3.0])["dots"]) == 3
    one = strip(rule="exact", value=0.0, tolerance=1e-4, mean=1e-13, low=1e-13, high=1e-13, n=1, values=[1e-13])
    assert one["interval"] is None
    assert one["dots"] == []
    assert one["ground"][0] < one["mean"] < sum(one["ground"])
    unbounded = strip(low=None, high=None, n=2, values=[1.0, 3.0])  # an interval that no number of bounds holds
    assert unbounded["interval"] == [0, 100]
    undefined = strip(mean=None, low=None, high=None, values=None)
    assert undefined["mean"] is None


def test_a_run_of_the_first_replicates_shows_the_verdicts_of_the_record():
    ours = {"notebook": "10_rdmd_2d", "verdict": "undecided", "checks": [{}], "record": {"agrees": "compatible"}}
    shown = recorded({"R2": ours})["R2"]
    record = json.loads((ROOT / "results" / "record" / "10_rdmd_2d.json").read_text(encoding="utf-8"))["claims"]["R2"]
    assert (shown["verdict"], shown["checks"], shown["agrees"]) == (record["verdict"], record["checks"], "compatible")
    other = {"notebook": "10_rdmd_2d", "verdict": "undecided"}  # of a profile with sizes of its own
    untested = ours | {"checks": []}  # nothing was measured, so nothing agrees
    assert recorded({"R2": other, "S2": untested}) == {"R2": other, "S2": untested}


def test_every_claim_has_a_title_for_its_row():
    titles = yaml.safe_load((BOOK / "titles.yaml").read_text(encoding="utf-8"))
    assert list(titles) == list(yaml.safe_load((ROOT / "claims.yaml").read_text(encoding="utf-8")))
    assert max(map(len, titles.values())) <= 45


# ------------------------------------------------------------------------------------------------- the built book


@pytest.fixture(scope="session")
def book() -> Path:
    """Return the folder of the built pages."""
    if "BOOK_HTML" in os.environ:
        folder = (ROOT / os.environ["BOOK_HTML"]).resolve()
        assert (folder / "index.html").exists(), f"BOOK_HTML: no index.html in {folder}"
        return folder
    built = sorted(ROOT.glob("runs/*/book/_build/html/index.html"), key=lambda path: path.stat().st_mtime)
    if built:
        return built[-1].parent
    how = ["--committed"] if (ROOT / "results" / "record").exists() else ["--profile", "smoke"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.book", *how], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1]).parent


class Page(html.parser.HTMLParser):
    """Collects of one page: ids, links, images without alt text, the number of h1, and the text a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.bare_images: list[str] = []
        self.h1 = self.article = 0
        self.text: list[str] = []
        self.inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        self.article += tag == "article"
        self.h1 += tag == "h1" and self.article > 0  # the theme repeats the title outside, for printing
        if tag == "img" and not (found.get("alt") or "").strip():
            self.bare_images.append((found.get("src") or "")[:80])
        if tag in ("script", "style", "pre"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.article -= tag == "article"
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text.append(data)


@pytest.fixture(scope="session")
def pages(book: Path) -> dict[str, Page]:
    """Return every page, by its path below the book's folder."""
    files = [path for path in sorted(book.rglob("*.html")) if "_static" not in path.parts]
    return {str(path.relative_to(book)): Page(path) for path in files}


def test_the_book_has_the_pages_of_the_toc(pages: dict[str, Page]):
    assert {f"{name}.html" for name in toc_files()} <= set(pages)
    files = [path for path in (ROOT / "lib").rglob("*.py") if path.stem != "__init__"]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert {f"api/{name}.html" for name in modules} <= set(pages)


def test_every_internal_link_resolves(book: Path, pages: dict[str, Page]):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith(("#", "data:")):
                target, fragment = name, parts.fragment if link.startswith("#") else ""
            else:
                target, fragment = unquote(urljoin(f"/{name}", parts.path))[1:] or "index.html", parts.fragment
            fragment = unquote(fragment)
            exists = (book / target).exists()
            if not exists or (fragment and target in pages and fragment not in pages[target].ids):
                broken.append(f"{name}: {link}")
    assert not broken


def test_one_title_and_no_raw_markup(pages: dict[str, Page]):
    # The theme's search page has none.
    assert {name: page.h1 for name, page in pages.items() if page.h1 != 1 and name != "search.html"} == {}
    left = {
        name: re.findall(r"\{\{.{0,40}|\{py:\w+\}.{0,40}|\{claim\}", "".join(page.text)) for name, page in pages.items()
    }
    assert {name: found for name, found in left.items() if found} == {}


def test_every_image_has_alt_text(pages: dict[str, Page]):
    assert {name: page.bare_images for name, page in pages.items() if page.bare_images} == {}


def test_no_script_or_style_from_another_host(book: Path):
    pattern = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"'](?:https?:)?//[^\"']+")
    found = {path.name: pattern.findall(path.read_text(encoding="utf-8")) for path in book.rglob("*.html")}
    assert {name: tags for name, tags in found.items() if tags} == {}


def test_scorecard_lists_every_claim(pages: dict[str, Page]):
    entries = yaml.safe_load((ROOT / "claims.yaml").read_text(encoding="utf-8"))
    assert {f"claim-{claim_id.lower()}" for claim_id in entries} <= pages["scorecard.html"].ids


# -------------------------------------------------------------------------------------------------- in the browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the book without a log."""

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Answers several requests at a time."""

    daemon_threads = True
    request_queue_size = 64


@pytest.fixture(scope="session")
def address(book: Path):
    """Serve the book on this machine."""
    with Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(book))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Start headless Chromium."""
    path = find_chromium()
    if path is None:
        message = "no Chromium found; install the package chromium, or name the program in CHROMIUM"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        program = play.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield program
        program.close()


class Visit:
    """A page of the browser with everything it asked for and said since it was last opened."""

    def __init__(self, browser, address: str) -> None:
        self.address, self.errors = address, []
        self.context = browser.new_context(viewport=DESK, color_scheme="light")
        self.page = page = self.context.new_page()
        page.on("console", lambda m: self.errors.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        page.on("requestfailed", lambda r: self._failed(r.url, r.failure or ""))
        page.on("response", lambda r: self.errors.append(f"{r.status}: {r.url[:120]}") if r.status >= 400 else None)
        page.on("request", lambda r: self._check_host(r.url))

    def _failed(self, url: str, why: str) -> None:
        if "ERR_ABORTED" not in why:  # a picture of the page before, when the browser went on
            self.errors.append(f"failed: {url[:120]}")

    def _check_host(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:", "about:")):
            self.errors.append(f"foreign: {url[:120]}")

    def open(self, name: str) -> None:
        self.errors.clear()
        self.page.set_viewport_size(DESK)
        self.page.goto(f"{self.address}/{name}", wait_until="load")
        self.page.evaluate(READY)


@pytest.fixture(scope="session")
def visit(browser, address):
    found = Visit(browser, address)
    yield found
    found.context.close()


DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

# Formulas have been set and fitted into their columns.
READY = """async () => { await document.fonts.ready; await new Promise(r => setTimeout(r, 50)); }"""

FORMULAS = """() => {
  const set = e => e.querySelector(e.matches('div') ? '.katex-display' : '.katex-html');
  const raw = [...document.querySelectorAll('.math')].filter(e => !set(e));
  const bad = [...document.querySelectorAll('.katex-error')];
  return [...raw, ...bad].map(e => e.textContent.slice(0, 60));
}"""

# Display equations are made smaller where the column is narrower; on a desk that must hardly happen.
EQUATIONS = """least => [...document.querySelectorAll('div.math')].flatMap(e => {
  const style = getComputedStyle(e), [left, right] = [style.paddingLeft, style.paddingRight].map(parseFloat);
  const room = e.clientWidth - left - right;
  const equation = e.querySelector('.katex-display'), size = parseFloat(equation?.style.fontSize || 100) / 100;
  const width = equation?.querySelector('.katex-html').scrollWidth;
  return size < least || width > room + 1 ? [`size ${size}, ${width} in ${room} px`] : [];
})"""

RAW_TEX = """() => {
  const walker = document.createTreeWalker(document.querySelector('article') || document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node; (node = walker.nextNode());) {
    if (node.parentElement.closest('script, style, pre, code, .katex, svg')) continue;
    const text = node.textContent.match(/\\\\[a-zA-Z]{2,}.{0,30}|\\$[^$]{1,40}\\$/);
    if (text) found.push(text[0]);
  }
  return found;
}"""

WIDE = """() => {
  const room = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= room) return [];
  const clipped = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
    if (getComputedStyle(p).overflowX !== 'visible') return true; return false; };
  return [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > room + 1 && !clipped(e))
    .slice(0, 5).map(e => `${e.tagName}.${e.className} ${Math.round(e.getBoundingClientRect().right)} > ${room}`)
    .concat([`page ${document.documentElement.scrollWidth} > ${room}`]);
}"""

# Code in sight of which a line ends beyond its box.
CUT = """() => [...document.querySelectorAll('.highlight pre')]
  .filter(e => e.checkVisibility({contentVisibilityAuto: true}) && e.scrollWidth > e.clientWidth)
  .map(e => e.textContent.split('\\n').reduce((a, b) => a.length > b.length ? a : b))"""

FIGURES = """theme => [...document.querySelectorAll('img.only-light, img.only-dark')].filter(
  e => (getComputedStyle(e).display !== 'none') !== e.classList.contains(`only-${theme}`)).map(e => e.alt)"""

# Colours fade from one theme to the other, and folds as they open.
STILL = """() => document.getAnimations().every(
  a => a.playState === 'finished' || a.effect.getComputedTiming().iterations === Infinity)"""

# What a page loads while it is read to its end, folds left closed, in bytes.
LOADED = """async () => {
  for (let y = 0; y < document.body.scrollHeight; y += 600) {
    window.scrollTo(0, y);
    await new Promise(r => setTimeout(r, 5));
  }
  await Promise.all([...document.images].filter(e => e.checkVisibility()).map(e => e.decode().catch(() => {})));
  return ['navigation', 'resource'].flatMap(kind => performance.getEntriesByType(kind)).map(e => e.encodedBodySize);
}"""
AXE = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}, "resultTypes": ["violations"], "preload": False}
CONTRAST = AXE | {"runOnly": {"type": "rule", "values": ["color-contrast"]}}  # Sphinx makes lists that are no lists


@pytest.fixture(scope="session")
def seen(visit, pages) -> dict[str, dict[str, list]]:
    """Open every page once, wide and light, then dark, then as narrow as a phone: kind of fault -> page -> faults.

    Of the listings of code, which Sphinx makes all alike, one in ten.
    """
    kinds = ("errors", "formulas", "equations", "tex", "cut", "heavy", "light", "dark", "wide")
    axe = Axe()
    faults: dict[str, dict[str, list]] = {kind: {} for kind in kinds}
    listings = [name for name in pages if name.startswith("_modules/")]
    for name in sorted(set(pages) - set(listings)) + listings[::10]:
        visit.open(name)
        page = visit.page
        cut, loaded = page.evaluate(CUT), page.evaluate(LOADED)
        page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
        found = {"formulas": page.evaluate(FORMULAS), "tex": page.evaluate(RAW_TEX)}
        found["cut"] = [] if name.startswith("_modules/") else cut  # listings of whole files
        found["equations"] = page.evaluate(EQUATIONS, 0.85)
        found["heavy"] = [(len(loaded), sum(loaded))] if len(loaded) > 40 or sum(loaded) > 3_000_000 else []
        rules = CONTRAST if name.startswith(("api/", "_modules/")) else AXE
        for theme in ("light", "dark"):
            page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
            page.wait_for_function(STILL)
            figures = [f"wrong figure for the theme: {alt[:60]}" for alt in page.evaluate(FIGURES, theme)]
            barriers = axe.run(page, "main", rules).response["violations"]
            figures += [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in barriers]
            found[theme] = figures
        page.set_viewport_size(PHONE)
        found["wide"] = page.evaluate(WIDE)
        found["equations"] += page.evaluate(EQUATIONS, 0.45)
        found["errors"] = list(visit.errors)
        for kind, wrong in found.items():
            if wrong:
                faults[kind][name] = wrong
    return faults


def test_no_console_error_and_no_failed_or_foreign_request(seen):
    assert seen["errors"] == {}


def test_formulas_are_set(seen, pages, book):
    assert seen["formulas"] == {}
    assert any('class="math' in (book / name).read_text(encoding="utf-8") for name in pages)


def test_equations_fit_their_column(seen):
    assert seen["equations"] == {}


def test_no_raw_tex_is_seen(seen):
    assert seen["tex"] == {}


def test_no_line_of_code_is_cut(seen):
    assert seen["cut"] == {}


def test_no_page_weighs_more_than_three_megabytes_or_makes_more_than_forty_requests(seen):
    assert seen["heavy"] == {}


def test_text_is_readable_and_figures_fit_in_light(seen):
    assert seen["light"] == {}


def test_text_is_readable_and_figures_fit_in_dark(seen):
    assert seen["dark"] == {}


def test_no_sideways_scroll_on_a_phone(seen):
    assert seen["wide"] == {}


def test_the_theme_button_shows_the_other_figures(visit, pages, book):
    name = next(
        n for n in pages if n.startswith("notebooks/") and "only-dark" in (book / n).read_text(encoding="utf-8")
    )
    visit.open(name)
    shown = {visit.page.evaluate("document.documentElement.dataset.theme")}
    for _ in range(3):  # light, dark, as the system says
        visit.page.locator("button.theme-switch-button:visible").first.click()
        theme = visit.page.evaluate("document.documentElement.dataset.theme")
        assert visit.page.evaluate(FIGURES, theme) == []
        shown.add(theme)
    assert shown == {"light", "dark"}


def test_sliders_move_their_pictures_and_name_them(visit, book, pages):
    found = [name for name in pages if 'class="slider"' in (book / name).read_text(encoding="utf-8")]
    assert {f"notebooks/{name}.html" for name in ("10_rdmd_2d", "30_sdft_weights", "40_dds_gaussian")} <= set(found)
    for name in found:
        visit.open(name)
        visit.page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
        for slider in visit.page.locator(".slider").all():
            shown, label = slider.locator("img:visible"), slider.locator("output")
            before = shown.get_attribute("src"), label.inner_text()
            slider.locator("input").focus()
            last = slider.locator("input").evaluate("e => e.value === e.max")
            visit.page.keyboard.press("ArrowLeft" if last else "ArrowRight")
            after = shown.get_attribute("src"), label.inner_text()
            assert before[0] != after[0], f"{name}: the slider does not change its picture"
            assert before[1] != after[1], f"{name}: the slider does not name its picture"
        assert not visit.errors, name


def test_the_search_finds_pages_in_files_that_nobody_serves(browser, book):
    page = browser.new_page()
    page.goto(f"{(book / 'search.html').as_uri()}?q=guidance")
    page.get_by_text("ANT: adversarial noise", exact=False).last.wait_for()
    page.close()


def test_the_forest_plot_shows_one_kind_of_evidence(visit):
    visit.open("index.html")
    rows = visit.page.locator(".forest-row:visible")
    everything = rows.count()
    visit.page.locator(".forest-filter input").first.focus()
    visit.page.keyboard.press("ArrowRight")  # from all to the first kind
    assert 0 < rows.count() < everything
    assert {row.get_attribute("data-kind") for row in rows.all()} == {"identity"}
    rows.first.click()
    assert "scorecard.html#claim-" in visit.page.url


def test_who_predicts_sees_the_result_afterwards(visit):
    visit.open("rdmd.html")
    page = visit.page
    verdict = page.locator(".claim-card .verdict").first
    assert verdict.is_visible()
    page.locator(".predict-switch").click()
    assert not verdict.is_visible()
    card = page.locator(".claim-card:has(form.claim-predict)").first
    card.locator("input").focus()
    page.keyboard.press("Home")
    card.get_by_role("button", name="reveal").click()
    assert verdict.is_visible()
    assert "measured" in card.locator("output").inner_text()
    visit.open("rdmd.html")  # kept
    assert page.locator(".claim-card .verdict").first.is_visible()
    page.locator(".predict-switch").click()
    page.evaluate("localStorage.clear()")


def test_toys_compute_what_lib_computes(visit):
    visit.open("rdmd.html")
    toys, draws = visit.page.evaluate, np.random.default_rng(0)
    world = GaussianWorld(torch.tensor([0.0, 0.1, 0.4]).reshape(3, 1, 1, 1), torch.ones(3, 1, 1, 1), scaled_linear())
    null, source, target = torch.arange(3).split(1)
    for _ in range(10):
        t, gamma, lambda_, omega = int(draws.integers(50, 949)), *draws.uniform(0.5, 9.0, 3)
        r, alpha, z, z_hat, eps = draws.uniform(-2, 2, 5)
        assert toys("([t, g]) => Toys.weight(t, g)", [t, gamma]) == pytest.approx(
            sdft.weight(linear(), gamma)[t].item()
        )
        assert toys("l => Toys.radius(1.5, l)", lambda_) == pytest.approx(rdmd.best_radius(1.5, lambda_))
        exact = np.pi * (abs(r) - 1.5) ** 2 / 3 + lambda_ * rdmd.transport_cost(abs(r), alpha)
        found = toys("([r, a, l]) => Toys.objective(r, a, 1.5, l)", [abs(r), alpha, lambda_])
        assert found == pytest.approx(float(exact))
        shots = draws.normal(-1, 1, (10, 2))
        to, ideal = shots.mean(0) - 1, np.array([-2.0, -2.0])
        cosine = to @ ideal / np.linalg.norm(to) / np.linalg.norm(ideal)
        assert toys("s => Toys.angle(s)", shots.tolist()) == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-4)
        x, x_hat, noise = (torch.full((1, 1, 1, 1), float(value)) for value in (z, z_hat, eps))
        times = torch.tensor([t])
        x_t, x_hat_t = (world.schedule.add_noise(part, noise, times) for part in (x, x_hat))
        ours = dds.sds_direction(world, x_t, target, null, omega, times, noise).item()
        given = [z, z_hat, t, eps, [0, 0.1, 0.4], omega]
        assert toys("([z, h, t, e, m, w]) => Toys.sds(z, t, e, m, w)", given) == pytest.approx(ours, abs=1e-4)
        ours = dds.dds_direction(world, x_t, x_hat_t, target, source, null, omega, times).item()
        assert toys("([z, h, t, e, m, w]) => Toys.dds(z, h, t, e, m, w)", given) == pytest.approx(ours, abs=1e-4)


def test_the_toy_of_trained_networks_maps_as_lib_does(visit):
    visit.open("rdmd.html")
    kept = json.loads((BOOK / "_static" / "rdmd-nets.js").read_text().split("=", 1)[1].rstrip(";\n"))
    law, draws = eight_gaussians(), torch.Generator().manual_seed(0)
    for lambda_, parts in kept["nets"].items():
        values = [step * torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.int8) for step, data in parts]
        values[0] = values[0] * math.sqrt(1 + kept["deviation"] ** 2)  # which an EDM divides its input by
        pairs = [(a.unflatten(0, (len(b), -1)), b) for a, b in zip(values[::2], values[1::2], strict=True)]

        def net(x, _, pairs=pairs):
            for weight, bias in pairs[:-1]:
                x = F.silu(F.linear(x, weight, bias))
            return F.linear(x, *pairs[-1])

        points = torch.randn(10_000, 2, generator=draws)
        mapped = nets.EDM(net, kept["deviation"])(points, 1.0)
        for point, image in zip(points[:10].tolist(), mapped.tolist(), strict=False):
            assert visit.page.evaluate(f"p => Toys.generate(p, '{lambda_}')", point) == pytest.approx(image, abs=1e-3)
        if float(lambda_) <= 0.2:
            assert judge_modes(mapped.double().numpy(), law)["found"] == 8


@pytest.mark.parametrize(("page", "toy"), [("rdmd", "λ"), ("sdft", "γ"), ("dds", "guidance"), ("ant", "")])
def test_toys_answer_to_mouse_and_keyboard(visit, page, toy):
    visit.open(f"{page}.html")
    root = visit.page.locator(".toy").first
    before = root.inner_text()
    if toy:
        root.locator("input").focus()
        visit.page.keyboard.press("End")
        assert root.inner_text() != before
    if page == "rdmd":
        trained = visit.page.locator(".toy").last
        trained.locator("svg").click()
        assert "G(0.0, 0.0)" in trained.inner_text()
    if page == "dds":
        root.get_by_role("button", name="play").click()
        visit.page.wait_for_function("() => document.querySelector('.toy-words').textContent.includes('step 200')")
    if page == "ant":
        root.get_by_role("button", name="a hundred times").click()
        assert "101 draws" in root.inner_text()
    assert not visit.errors


def test_toys_are_small():
    assert sum((BOOK / "_static" / name).stat().st_size for name in ("toys.js", "rdmd-nets.js")) < 60_000


def test_scorecard_filter(visit):
    visit.open("scorecard.html")
    rows = visit.page.locator("table.scorecard tr[data-verdict]:visible")
    everything = rows.count()
    visit.page.select_option("select[name=paper]", "DDS")
    only = rows.count()
    assert 0 < only < everything
    visit.page.select_option("select[name=verdict]", "not tested")
    assert 0 < rows.count() < only
