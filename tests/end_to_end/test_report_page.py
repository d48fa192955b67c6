"""The pages in a real browser: players play, curves are the logged numbers, all is accessible, nothing is requested.

Needs Chromium (Debian: ``apt-get install chromium``); the variable CHROMIUM names another one.
"""

import csv
import io
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from higgs_trainer.audio.files import write_audio
from higgs_trainer.cli import app
from higgs_trainer.demo.outcome import DEMO_NOTE, WITH_THE_REAL_CHECKPOINT
from higgs_trainer.errors import UserError
from higgs_trainer.report.run_page import write_report
from run_folders import EVIL, make_logs, tone, write_lines, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra dev is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"
)

PAGES = ("one.html", "both.html", "demo.html", "corpus.html", "twice.html")
PHONE, NARROW, DESKTOP = ({"width": width, "height": 900} for width in (360, 390, 1280))
LAYOUT = (Path(__file__).parent / "layout.js").read_text()
DECODE_IMAGES = "Promise.all([...document.images].map((image) => image.decode()))"


class Visit:
    """An open page, with its console messages, errors and requests."""

    def __init__(self, page, path):
        self.page = page
        self.complaints = []
        self.requests = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.evaluate(DECODE_IMAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, the page of one and the page of both; the demo's page of the first; and the pages of two corpora, one
    with a problem that has no recording, one with a problem that has one."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first")
    write_run(folder / "second", shift=0.3)
    run("report", folder / "first", "-o", folder / "one.html")
    run("report", folder / "first", folder / "second", "-o", folder / "both.html")
    write_report([folder / "first"], folder / "demo.html", note=DEMO_NOTE, next_step=WITH_THE_REAL_CHECKPOINT)
    for number in range(4):
        write_audio(folder / f"{number}.wav", tone(220 + 50 * number, 0.5 + 0.1 * number))
    rows = [{"audio": f"{number}.wav", "text": f"one {EVIL}"} for number in range(5)]
    write_lines(folder / "corpus.jsonl", rows)
    write_lines(folder / "twice.jsonl", [{"audio": "0.wav", "text": text} for text in ("one", "two three")])
    for name in ("corpus", "twice"):
        page = folder / f"{name}.html"
        prepared = folder / "prepared"
        rows_file = folder / f"{name}.jsonl"
        run("prepare", rows_file, "-o", prepared, "--codec", "embedded", "--report", page, code=2)
    return folder


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if code == 0:
        assert done.exit_code == 0, done.output
    else:
        assert isinstance(done.exception, UserError)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, folder):
    contexts = []

    def open_page(name="one.html", *, viewport=DESKTOP, before="", **options):
        contexts.append(browser.new_context(viewport=viewport, **options))
        contexts[-1].add_init_script(before)
        return Visit(contexts[-1].new_page(), folder / name)

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["one.html", "both.html", "corpus.html"])
def test_a_page_asks_for_nothing(visit, name):
    opened = visit(name)
    opened.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    opened.page.wait_for_timeout(100)
    assert opened.complaints == []
    outside = [url for url in opened.requests[1:] if not url.startswith("data:")]
    assert outside == []


@pytest.mark.slow
def test_the_page_of_a_long_run_stays_small(visit, folder):
    """Five sentences of eight seconds in four columns and at one step in between, and 1,000 logs."""
    speech = torch.randn(24_000 * 8, generator=torch.Generator().manual_seed(0)) * tone(3, 8.0)
    long = write_run(folder / "long", texts=tuple(f"sentence {number}" for number in range(5)))
    for path in [*long.glob("samples/*/*.wav"), *long.glob("_recordings/*.wav")]:
        write_audio(path, speech)
    log = make_logs()[0]
    write_lines(
        long / "metrics.jsonl",
        [{key: value / step for key, value in log.items()} | {"step": step} for step in range(1, 1001)],
    )
    run("report", long)
    page = long / "report.html"
    assert 1e6 < page.stat().st_size < 5e6
    # A curve of 1,000 points is one element, so the browser has little to lay out.
    count = visit(page).page.evaluate("document.querySelectorAll('*').length")
    assert count < 1_000


# one two: reference, before, after, recording, on the way; the other text: the same without a recording. The corpus:
# each recording at both ends of duration, loudness, peak and pace, four being all there are, and none for the problem.
@pytest.mark.parametrize(("name", "count"), [("one.html", 5 + 4), ("corpus.html", 4 * 4)])
def test_every_player_plays(visit, name, count):
    page = visit(name).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    players = page.locator("audio")
    assert players.count() == count
    for index in range(players.count()):
        played = players.nth(index).evaluate(
            """async (audio) => {
                 await audio.play();
                 const moves = new Promise((done) => audio.addEventListener("timeupdate", done));
                 if (audio.currentTime === 0) await moves;
                 const others = [...document.querySelectorAll("audio")].filter((one) => one !== audio && !one.paused);
                 return [audio.currentTime, audio.duration, others.length];
               }"""
        )
        assert played[0] > 0
        assert 0.35 < played[1] < 0.95
        assert played[2] == 0  # one voice at a time


def test_the_curves_are_the_logged_numbers(visit):
    """Read the corners of each curve back through its axis, and compare the value shown at each step digit by digit."""
    page = visit().page
    logs = make_logs()
    charts = page.locator(".chart")
    assert charts.count() == 1 + 1 + 3 + 2
    for index in range(charts.count()):
        chart = charts.nth(index)
        keys = [
            key for key in (chart.get_attribute("data-train"), chart.get_attribute("data-held-out")) if key
        ]
        expected = [[(log["step"], log[key]) for log in logs if key in log] for key in keys]
        expected = [points for points in expected if points]
        curves = chart.locator("polyline").evaluate_all(
            "(lines) => lines.map((line) => line.getAttribute('points'))"
        )
        assert len(curves) == len(expected)
        pairs = [
            (pixel, point)
            for curve, points in zip(curves, expected, strict=True)
            for pixel, point in zip(parse_points(curve), points, strict=True)
        ]
        for axis in (0, 1):
            assert_linear([(pixel[axis], point[axis]) for pixel, point in pairs], falls=axis == 1)
    for step in ("6", "7", "12"):
        page.evaluate("(step) => choose(steps.indexOf(Number(step)))", step)
        for chart, key in ((0, "loss"), (0, "eval_loss"), (3, "codebook_1_loss"), (5, "learning_rate")):
            shown = (
                charts.nth(chart)
                .locator(".value")
                .nth(int(key.startswith("eval_")))
                .get_attribute("data-exact")
            )
            assert float(shown) == [log[key] for log in logs if key in log and log["step"] <= int(step)][-1]


def parse_points(text):
    return [tuple(map(float, point.split(","))) for point in text.split()]


def assert_linear(pairs, *, falls):
    """Pixels (to a tenth) must be a linear function of the values. On a screen, a higher point has a smaller y."""
    pairs = sorted(pairs, key=lambda pair: pair[1])
    (low_pixel, low), (high_pixel, high) = pairs[0], pairs[-1]
    assert (high_pixel < low_pixel) == falls
    for pixel, value in pairs:
        assert pixel == pytest.approx(
            low_pixel + (value - low) / (high - low) * (high_pixel - low_pixel), abs=0.15
        )


def test_a_pointer_and_the_keyboard_move_all_charts_to_a_step(visit):
    page = visit().page
    chart = page.locator(".chart svg").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    assert page.locator("#shown-step").inner_text() == "3 of 12"
    page.locator("#step").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#shown-step").inner_text() == "6 of 12"
    assert page.locator("#step").get_attribute("aria-valuetext") == "step 6"
    exact = page.locator(".chart").nth(3).locator(".value").first.get_attribute("data-exact")
    assert float(exact) == next(log["codebook_1_loss"] for log in make_logs() if log["step"] == 6)


@pytest.mark.parametrize("name", ["one.html", "both.html"])
def test_all_logged_numbers_can_be_copied(visit, name):
    page = visit(name, permissions=["clipboard-read", "clipboard-write"]).page
    page.locator("#all-numbers summary").click()
    page.locator("[data-copies=csv]").click()
    sync_api.expect(page.locator("#all-numbers [role=status]")).to_have_text("Copied.")
    copied = page.evaluate("navigator.clipboard.readText()")
    rows = [row for row in csv.DictReader(io.StringIO(copied)) if row["run"] == "first"]
    assert [
        {key: float(value) for key, value in row.items() if key != "run" and value} for row in rows
    ] == make_logs()
    cells = page.locator("table.logged").first.locator("tbody td").all_inner_texts()
    assert [float(cell) for cell in cells if cell] == [
        value
        for row in rows
        for key, value in row.items()
        if key != "run" and value
        for value in [float(value)]
    ]


def test_the_recipe_can_be_copied(visit, folder):
    page = visit(permissions=["clipboard-read", "clipboard-write"]).page
    page.locator("[data-copies=recipe-0]").focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#recipe [role=status]")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == (folder / "first" / "recipe.yaml").read_text()


def test_texts_are_shown_and_never_run(visit):
    opened = visit()
    assert opened.page.title().startswith("first, LoRA on base, ")
    assert opened.page.locator("li h3").nth(1).inner_text() == EVIL
    assert "49" not in opened.page.locator("li h3").nth(1).inner_text()
    assert opened.page.evaluate("document.querySelectorAll('img[src=x], [onerror]').length") == 0
    for section in ("#data", "#guard", "#recipe", "#listen"):
        assert EVIL in re.sub(r"\s+", " ", opened.page.locator(section).inner_text()), section
    assert opened.complaints == []


@pytest.mark.parametrize(
    ("name", "viewport", "scheme"),
    [
        ("one.html", PHONE, "light"),
        ("one.html", PHONE, "dark"),
        ("one.html", DESKTOP, "light"),
        ("one.html", DESKTOP, "dark"),
        ("both.html", PHONE, "dark"),
        ("both.html", DESKTOP, "light"),
        ("corpus.html", PHONE, "dark"),
        ("corpus.html", DESKTOP, "light"),
    ],
)
def test_everyone_can_read_it(visit, name, viewport, scheme):
    """axe-core finds no violation, contrast included, and nothing is wider than the screen."""
    from axe_playwright_python.sync_playwright import Axe

    page = visit(name, viewport=viewport, color_scheme=scheme).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    if name != "corpus.html":
        page.wait_for_selector("table.logged")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    if name == "one.html":
        page.locator("#blind").click()
        page.locator(".reveal button").first.click()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("viewport", [NARROW, DESKTOP])
def test_nothing_lies_on_top_of_anything_and_every_text_has_room(visit, name, viewport):
    """Compare the boxes of all texts, players, pictures and controls. A text of several lines has words in each."""
    page = visit(name, viewport=viewport).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = page.evaluate(LAYOUT)
    assert found["boxes"] > 40
    assert found["overlaps"] == []
    assert found["squeezed"] == []


def test_what_overlaps_and_what_is_squeezed_is_found(visit):
    """The test above would notice both: a player is moved up, and a text gets three letters a line."""
    page = visit().page
    page.add_style_tag(content="audio { margin-top: -30px } .lead { width: 3ch }")
    found = page.evaluate(LAYOUT)
    assert any("AUDIO" in pair for pair in found["overlaps"])
    assert any("The voice" in text for text in found["squeezed"])


def list_names(page):
    return page.locator("#listen figcaption b").all_inner_texts()


def test_names_are_hidden_and_clips_shuffled_in_a_blind_test(visit):
    """By the keyboard alone. The order is reversed, because the random numbers are."""
    page = visit(before="Math.random = () => 0").page
    names = list_names(page)
    sounds = "[...document.querySelectorAll('#listen .clips audio')].map((audio) => audio.src)"
    order = page.evaluate(sounds)
    switch = page.get_by_role("switch", name="Listen blind")
    status = page.locator(".blind [role=status]")
    switch.focus()
    page.keyboard.press("Space")
    assert switch.get_attribute("aria-checked") == "true"
    sync_api.expect(status).to_contain_text("The names are hidden")
    shown = page.locator("#listen .cards").inner_text()
    for told in ("before", "after", "the real voice", "heard", "did not stop"):
        assert told not in shown, told
    labels = page.locator("#listen audio").evaluate_all("(all) => all.map((one) => one.ariaLabel)")
    assert labels[:4] == [f"Clip {letter}: one two" for letter in "ABCD"]
    assert page.locator("#listen img:visible").count() == 0
    shuffled = page.evaluate(sounds)
    assert sorted(shuffled) == sorted(order)
    assert shuffled[:4] == [*order[1:4], order[0]]

    page.locator(".reveal button").first.focus()
    page.keyboard.press("Enter")
    revealed = [f"{letter}: {name}" for letter, name in zip("ABCD", [*names[1:4], names[0]], strict=True)]
    assert list_names(page)[:4] == revealed
    expected = ", ".join(one.replace(":", " is") for one in revealed)
    sync_api.expect(page.locator(".reveal [role=status]").first).to_have_text(re.compile(f"^{expected}"))
    assert page.evaluate("document.activeElement.tagName") == "AUDIO"

    switch.focus()
    page.keyboard.press("Enter")
    assert switch.get_attribute("aria-checked") == "false"
    sync_api.expect(status).to_have_text("The names are shown.")
    assert list_names(page) == names
    assert page.evaluate(sounds) == order


def test_the_commands_of_the_demo_page_can_be_copied(visit):
    page = visit("demo.html", permissions=["clipboard-read", "clipboard-write"]).page
    page.get_by_role("button", name="Copy the commands").click()
    sync_api.expect(page.locator("#result [role=status]")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == WITH_THE_REAL_CHECKPOINT.command
    assert page.get_by_role("link", name="bosonai").get_attribute("href") == WITH_THE_REAL_CHECKPOINT.address


@pytest.mark.parametrize("name", ["demo.html", "both.html", "twice.html"])
@pytest.mark.parametrize("viewport", [NARROW, DESKTOP])
def test_the_parts_of_a_clip_lie_below_each_other(visit, name, viewport):
    """Name, spectrogram, player and text of each clip; and no figure of a tile reaches beyond its tile."""
    page = visit(name, viewport=viewport).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll(".clip")].map((clip) => [...clip.children].map((part) => {
             const { top, bottom } = part.getBoundingClientRect();
             return [top, bottom];
           }))"""
    )
    assert len(boxes) >= 5
    for parts in boxes:
        assert len(parts) == 4
        assert all(top >= bottom - 0.5 for (_, bottom), (top, _) in pairwise(parts)), parts
        assert all(bottom > top for top, bottom in parts[:3]), parts
    figures = page.locator(".tiles .figures")
    widths = figures.evaluate_all("(all) => all.map((one) => [one.scrollWidth, one.clientWidth])")
    assert [content for content, room in widths if content > room] == []


def test_every_control_is_reached_by_the_tab_key(visit):
    page = visit().page
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.outerHTML.match(/^<(\\w+)/)[1] + (document.activeElement.id || '')"
            )
        )
    assert {"a", "audio", "summary", "inputstep", "button", "prerecipe-0", "div"} <= reached
