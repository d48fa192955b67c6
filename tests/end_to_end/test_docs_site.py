"""The documentation site: it builds offline without a warning, every link leads somewhere, and everyone can read it.

Needs Chromium (Debian: ``apt-get install chromium``); the variable CHROMIUM names another one.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra dev is not installed")
pytest.importorskip("mkdocs", reason="the extra docs is not installed")

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"
)
VIEWPORTS = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}
# A page of each kind: prose, players, a picture, headings that are messages, generated tables, Python objects.
KINDS_OF_PAGES = (
    "index.html",
    "listen.html",
    "architecture.html",
    "troubleshooting.html",
    "reference/recipe.html",
    "reference/python.html",
)


class ParsedPage(HTMLParser):
    """The links and the anchors of one page."""

    def __init__(self, text):
        super().__init__()
        self.targets = []
        self.anchors = set()
        self.loaded = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        if tag == "a" and attributes.get("href"):
            self.targets.append(attributes["href"])
        if tag in ("script", "img", "iframe", "audio", "source") and attributes.get("src"):
            self.loaded.append(attributes["src"])
        if tag == "link" and attributes.get("rel") != "canonical" and attributes.get("href"):
            self.loaded.append(attributes["href"])


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line of log for each."""

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as `make docs` does. A warning is an error, and conftest.py forbids the network."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site).as_posix(): ParsedPage(path.read_text("utf-8"))
        for path in sorted(site.rglob("*.html"))
        if path.name != "404.html"
    }


@pytest.fixture(scope="module")
def address(site):
    """Serve the site on this machine."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, address):
    """Open pages and record console messages, errors, failed requests, and requests to other hosts."""
    contexts = []

    def open_page(name, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))

        def answer(route):
            url = route.request.url
            if url.startswith((address, "data:", "blob:")):
                route.continue_()
            else:
                page.complaints.append(f"request to {url}")
                route.abort()

        page.route("**/*", answer)
        page.on("response", lambda got: got.ok or page.complaints.append(f"{got.status} {got.url}"))
        page.goto(f"{address}/{name}")
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_every_page_of_the_reading_order_is_built(pages):
    assert set(KINDS_OF_PAGES) <= set(pages)
    assert len(pages) > 40


def test_every_internal_link_and_anchor_exists(site, pages):
    broken = []
    for name, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            path = (
                Path(os.path.normpath(site / name / ".." / unquote(parts.path)))
                if parts.path
                else site / name
            )
            if path.is_dir():
                path = path / "index.html"
            linked = pages.get(path.relative_to(site).as_posix())
            if not path.is_file() or (
                parts.fragment and linked and unquote(parts.fragment) not in linked.anchors
            ):
                broken.append(f"{name}: {target}")
    assert not broken


def test_no_page_loads_anything_from_another_host(site, pages):
    assert [(name, url) for name, page in pages.items() for url in page.loaded if urlsplit(url).netloc] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text("utf-8")), style


def test_llms_txt_lists_every_page_with_a_line(site, pages):
    listed = re.findall(r"^- \[.+?\]\((.+?)\): \S+", (site / "llms.txt").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(pages)


def test_the_references_hold_what_the_code_defines(site):
    commands = (site / "reference/cli.html").read_text("utf-8")
    for verb in ("demo", "prepare", "check", "train", "generate", "evaluate", "report", "merge", "card"):
        assert f'id="{verb}"' in commands
    recipe = (site / "reference/recipe.html").read_text("utf-8")
    for field in ("name_or_path", "tokens_per_pack", "lora_alpha", "output_dir", "held_out", "patience"):
        assert f"<code>{field}</code>" in recipe
    architecture = (site / "architecture.html").read_text("utf-8")
    assert "<code>losses.py</code>" in architecture
    troubleshooting = (site / "troubleshooting.html").read_text("utf-8")
    assert "no supervised audio cell in this step" in troubleshooting


@needs_chromium
@pytest.mark.slow
def test_no_page_complains_in_a_browser(visit, address, pages):
    page = visit("index.html", viewport=VIEWPORTS["desktop"])
    for name in pages:
        page.goto(f"{address}/{name}")
    assert not page.complaints


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("viewport", "scheme"), [("phone", "dark"), ("desktop", "light")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(visit, address, viewport, scheme):
    from axe_playwright_python.sync_playwright import Axe

    found = {}
    page = visit(KINDS_OF_PAGES[0], viewport=VIEWPORTS[viewport], color_scheme=scheme)
    for name in KINDS_OF_PAGES:
        page.goto(f"{address}/{name}")
        results = Axe().run(page)
        if results.violations_count:
            found[name] = results.generate_report()
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > VIEWPORTS[viewport]["width"]:
            found[f"{name}, width"] = width
    assert not found, "\n".join(map(str, found.values()))


@needs_chromium
@pytest.mark.slow
def test_the_search_finds_a_page_offline(visit):
    # Text that is typed before the page's script listens is lost, so the query is in the address.
    page = visit("index.html?q=unexpected+keyword+argument", viewport=VIEWPORTS["desktop"])
    page.wait_for_selector(".md-search-result__item a[href*='troubleshooting']")
    assert not page.complaints
