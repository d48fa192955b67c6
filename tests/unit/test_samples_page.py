"""The page must work from a moved folder, offline, by keyboard, and whatever its texts hold."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
import torch

from higgs_trainer.speech.evaluate import SpeechScores
from higgs_trainer.speech.samples_page import Clip, Row, write_samples_page

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Collects the tags with their attributes and the visible text; refuses tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def find(self, wanted: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == wanted]


def tone(seconds: float = 0.5) -> torch.Tensor:
    return 0.3 * torch.sin(2 * torch.pi * 220 * torch.arange(int(seconds * 24_000)) / 24_000)


def scores(similarity: float | None) -> SpeechScores:
    return SpeechScores(
        n=7,
        wer=0.125,
        wer_homophones_forgiven=0.05,
        similarity=similarity,
        stopped_share=6 / 7,
        transcripts=(),
    )


@pytest.fixture
def page(tmp_path: Path) -> Page:
    rows = [
        Row("one two", {"before": Clip(tone(), "nine", stopped=False), "after": Clip(tone(), "1, 2.")}),
        Row("three", {"after": Clip(torch.zeros(0), ""), "the real voice": Clip(tone(), "three")}),
    ]
    path = tmp_path / "new folder" / "samples.html"
    summary = {"before": scores(0.5), "the real voice": scores(None)}
    write_samples_page(path, "A new voice", rows, summary, facts={"Training": "212 seconds"})
    return Page(path)


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert page.find("script") == page.find("link") == page.find("img") == []
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_the_audio_in_the_page_is_the_clip(page: Page) -> None:
    source = page.find("audio")[0]["src"]
    assert source is not None
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
    assert rate_hz == 24_000
    assert len(samples) == pytest.approx(12_000, abs=2 * 1152)  # MP3 pads to frames of 576 or 1152 samples
    assert (samples**2).mean() == pytest.approx(0.3**2 / 2, rel=0.2)


def test_every_player_is_named_and_can_be_driven_by_keyboard(page: Page) -> None:
    players = page.find("audio")
    assert [player["aria-label"] for player in players] == [
        "before: one two",
        "after: one two",
        "the real voice: three",
    ]
    assert all("controls" in player for player in players)


def test_phone_and_dark_mode_are_provided_for(page: Page) -> None:
    named = {attributes.get("name"): attributes.get("content") for attributes in page.find("meta")}
    assert named["viewport"] == "width=device-width, initial-scale=1"
    assert named["color-scheme"] == "light dark"
    assert "prefers-color-scheme: dark" in page.text


def test_what_was_heard_and_the_figures_are_shown(page: Page) -> None:
    text = " ".join(page.text.split())
    for expected in ("12.5%", "5.0%", "0.500", "–", "86%", "212 seconds", "robotic"):
        assert expected in text
    assert "✗ heard otherwise: “nine”; did not stop by itself" in text
    assert "✓ heard right: “1, 2.”" in text
    assert "✗ heard otherwise: nothing" in text


def test_texts_are_never_read_as_html(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> \"quoted\" & 'quoted' {{ 7 * 7 }}"
    path = tmp_path / "samples.html"
    rows = [Row(evil, {evil: Clip(tone(), evil)})]
    write_samples_page(path, evil, rows, {evil: scores(0.9)}, facts={evil: evil}, note=evil)
    page = Page(path)
    assert page.find("script") == []
    assert page.find("audio")[0]["aria-label"] == f"{evil}: {evil}"
    assert "49" not in page.text
    assert page.text.count(evil) == 9
