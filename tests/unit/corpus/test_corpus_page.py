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


def test_the_title_and_the_verdict_are_in_numbers(page: str) -> None:
    assert "<title>m.jsonl: 10 recordings, 10 s</title>" in page
    assert "Too little for a voice by LoRA: 9 usable recordings, 9 s, if they are of one person" in page
    assert "2 rows have a problem." in page
    assert "All recordings have a sample rate of 8,000 Hz, less than the 24,000 Hz of the model" in page
    assert "sounds above 4 kHz are missing" in page
    assert "Formats: 10 at 8,000 Hz mono." in page


def test_problems_come_first_with_the_option_that_leaves_them_out(page: str) -> None:
    assert page.index("m.jsonl:10: silent.wav is silent") < page.index("Speakers and languages")
    assert page.index("m.jsonl:11: none.wav cannot be read as audio") < page.index("Speakers and languages")
    assert '<code id="option">--max-rejected 2</code>' in page
    assert re.search(r"<pre [^>]*>m.jsonl:10\nm.jsonl:11</pre>", page)


def test_distributions_have_axes_in_units_and_players_at_both_ends(page: str) -> None:
    assert "The line is the median, 0.9 s." in page
    assert "The line is the median, 10.0 words a second." in page
    assert re.findall(r"<h3>(\w+)</h3>", page) == [
        *("Shortest", "Longest", "Quietest", "Loudest", "Lowest", "Highest", "Slowest", "Fastest")
    ]
    durations = page[page.index("<h2>Duration</h2>") : page.index("<h2>Loudness")]
    assert re.findall(r'<span style="left: [^"]*">([^<]*)</span>', durations) == ["0.5", "1.0", "1.5"]
    counts = [int(count) for count in re.findall(r"<title>(\d+) from", durations)]
    assert sum(counts) == 10
    captions = re.findall(r"<figcaption><b>([^<]*)</b>", durations)
    assert captions == ["1.wav", "2.wav", "3.wav", "9.wav", "8.wav", "7.wav"]
    players = re.findall(r'<audio [^>]*src="(data:audio/mpeg;base64,[^"]{1000,})"', page)
    assert len(players) == 4 * 6 + 1  # three at each end of four distributions, and the silent one
    loudness = page[page.index("<h2>Loudness") : page.index("<h2>Peak</h2>")]
    shown = [float(value) for value in re.findall(r"<figcaption><b>(\S+) dBFS</b>", loudness)]
    assert shown[0] == -120
    assert shown[1:] == pytest.approx([20 * np.log10(0.1 / np.sqrt(3))] * 5, abs=0.2)


def test_texts_are_escaped(page: str) -> None:
    assert html.escape("<b>& word</b>") in page
    assert "<b>& word" not in page
