"""Every page: no value is executed, and audio and spectrogram are those of the clip."""

import base64
import hashlib
import html
import io
import re

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from higgs_trainer.page.document import write_document
from higgs_trainer.page.sound import NUM_MELS, WIDEST_COLUMNS, draw_spectrogram, encode_audio
from run_folders import EVIL, tone

RATE_HZ = 24_000


def decode_uri(uri):
    return base64.b64decode(uri.partition("base64,")[2])


def brightness(waveform_S):
    """(mel bands, columns), the lowest band first, 0 to 255."""
    image = Image.open(io.BytesIO(decode_uri(draw_spectrogram(waveform_S, RATE_HZ))))
    return np.asarray(image.convert("L"), dtype=float)[::-1]


def write_template(folder):
    template = folder / "some.html.jinja"
    template.write_text(
        '{% extends "base.html.jinja" %}{% block content %}<p title="{{ text }}">{{ text }}</p>{% endblock %}'
    )
    return template


def test_values_are_escaped_and_nothing_but_the_script_may_run(tmp_path):
    path = tmp_path / "new folder" / "page.html"
    script = "console.log(1 < 2 && '{{ 7 * 7 }}');"
    size_bytes = write_document(path, write_template(tmp_path), script=script, title=EVIL, text=EVIL)
    page = path.read_text()
    assert size_bytes == path.stat().st_size
    assert [path.name for path in path.parent.iterdir()] == ["page.html"]
    assert page.count("<script") == 1
    assert "<img" not in page
    held = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    assert held == script
    digest = base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html.unescape(page))[1]
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_a_page_without_a_script_lets_none_run(tmp_path):
    write_document(tmp_path / "page.html", write_template(tmp_path), title="a", text="b")
    page = (tmp_path / "page.html").read_text()
    assert "script-src 'none'" in html.unescape(page)
    assert "<script" not in page


def test_the_audio_is_the_clip():
    samples, rate_hz = soundfile.read(io.BytesIO(decode_uri(encode_audio(tone(220, 0.5), RATE_HZ))))
    assert rate_hz == RATE_HZ
    assert len(samples) == pytest.approx(12_000, abs=2 * 1152)  # MP3 pads to frames of 576 or 1152 samples
    assert (samples**2).mean() == pytest.approx(0.3**2 / 2, rel=0.2)


def test_a_tone_is_a_line_at_its_height():
    def to_mel(hz):
        return 2595 * np.log10(1 + hz / 700)

    for hz in (440, 1900, 7000):
        bands = brightness(tone(hz, 0.7)).mean(axis=1)
        expected = (to_mel(hz) - to_mel(50)) / (to_mel(12_000) - to_mel(50)) * (NUM_MELS + 1) - 1
        assert abs(int(bands.argmax()) - expected) <= 1
        assert bands.max() > 150
    assert brightness(tone(440, 0.7)).shape == (NUM_MELS, 1 + 16_800 // 240)


def test_time_goes_to_the_right_and_loudness_does_not_matter():
    waveform_S = torch.cat([torch.zeros(6000), tone(440, 0.5)])
    columns = brightness(waveform_S).max(axis=0)
    start = 6000 // 240
    assert columns[: start - 5].max() < 30
    assert columns[start + 5 : -5].min() > 150
    assert np.abs(brightness(waveform_S) - brightness(waveform_S / 50)).mean() < 4


@pytest.mark.parametrize("waveform_S", [torch.zeros(2400), torch.zeros(1)])
def test_silence_is_dark(waveform_S):
    assert brightness(waveform_S).max() < 30


def test_a_long_clip_is_no_wider_than_it_may_be():
    assert brightness(tone(440, 20)).shape[1] <= WIDEST_COLUMNS + 1
    assert (
        len(draw_spectrogram(torch.randn(24_000 * 20, generator=torch.Generator().manual_seed(0)), RATE_HZ))
        < 40_000
    )
