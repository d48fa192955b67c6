"""The page about a corpus: its figures, its players, and texts with HTML in them."""

import html
import json
import re

import numpy as np
import pytest
import soundfile

from higgs_trainer.corpus.corpus_page import write_corpus_page
from higgs_trainer.corpus.inspection import judge_corpus, measure_rows, store_rows
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.distributed import Processes
from higgs_trainer.manifest.rows import check_rows, open_source
from higgs_trainer.progress import skip_progress

RATE_HZ = 8000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the page of nine recordings from 0.2 to 1.8 seconds, a silent one, and a file that is not audio."""
    tmp_path, rows = tmp_path_factory.mktemp("corpus"), []
    for index in range(1, 10):
        samples = np.random.default_rng(index).uniform(-0.1, 0.1, index * RATE_HZ // 5)
        soundfile.write(tmp_path / f"{index}.wav", samples, RATE_HZ)
        rows.append({"audio": f"{index}.wav", "text": "word " * 2 * index})
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE_HZ * 4 // 5), RATE_HZ)
    (tmp_path / "none.wav").write_text("no sound")
    rows.append({"audio": "silent.wav", "text": "<b>& word</b>"})
    rows.append({"audio": "none.wav", "text": "word"})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    work, limits = WorkDirectory(tmp_path / "prepared"), Limits()
    with work.lock():
        store_rows(check_rows(open_source(tmp_path / "m.jsonl")), work)
        measure_rows(work, Processes(), limits, skip_progress)
        judge_corpus(work, Processes(), limits)
        write_corpus_page(work, tmp_path / "pages" / "report.html", title="m.jsonl", limits=limits)
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["report.html"]
    return (tmp_path / "pages" / "report.html").read_text(encoding="utf-8")


def test_figures_match_the_recordings(page: str) -> None:
    assert "<dt>Recordings that can be read</dt><dd>10 (0.00 h)</dd>" in page
    assert "<dt>Rows with a problem</dt><dd>2 (2 problems)</dd>" in page
    assert "<dt>Formats</dt><dd>10 at 8,000 Hz mono</dd>" in page
    assert "Duration: from 0.2 s to 1.8 s, median 0.9 s" in page
    assert "Pace: from 10.0 words per second to 10.0 words per second, median 10.0 words per second" in page
    loudness = re.search(r"Loudness .*?: from (\S+) dBFS to (\S+) dBFS, median (\S+) dBFS", page)
    assert loudness is not None
    uniform_dbfs = 20 * np.log10(0.1 / np.sqrt(3))
    assert [float(value) for value in loudness.groups()] == pytest.approx(
        [-120, uniform_dbfs, uniform_dbfs], abs=0.2
    )


def test_problems_and_both_ends_have_players(page: str) -> None:
    assert "m.jsonl:10: silent.wav is silent" in page
    assert "m.jsonl:11: none.wav cannot be read as audio" in page
    players = re.findall(r'<audio [^>]*src="(data:audio/mpeg;base64,[^"]{1000,})"', page)
    assert len(players) == 4 * 6 + 1  # three at each end of four distributions, and the silent one


def test_texts_are_escaped(page: str) -> None:
    assert html.escape("<b>& word</b>") in page
    assert "<b>& word" not in page
