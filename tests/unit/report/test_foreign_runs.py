"""A run folder from someone else: the page holds nothing from outside it, stays small, and escapes every text."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from higgs_trainer.audio.files import write_audio
from higgs_trainer.errors import UserError
from higgs_trainer.report import thinning
from higgs_trainer.report.listening import find_sentences
from higgs_trainer.report.logs import read_logs
from higgs_trainer.report.run_page import write_report
from higgs_trainer.report.runs import read_runs
from higgs_trainer.report.thinning import ThinnedLog, fit_on_page
from run_folders import EVIL, tone, write_evaluation_folder, write_json, write_lines, write_run

SECRET = "a secret of this machine"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A recording outside the run folder."""
    path = tmp_path / "secret.wav"
    write_audio(path, tone(990.0))
    return path


def read_page(run: Path) -> tuple[str, list[str]]:
    written = write_report([run], run / "page.html")
    return re.sub(r"\s+", " ", (run / "page.html").read_text()), list(written.notes)


@pytest.mark.parametrize("place", ["samples/step-6", "_recordings", "evaluation"])
def test_a_clip_outside_the_run_folder_is_named_and_left_out(run: Path, secret: Path, place: str) -> None:
    folder = run / place
    (folder / "link.wav").symlink_to(secret)
    (folder / "folder").symlink_to(secret.parent)
    climbing = os.path.relpath(secret, folder)
    names = [str(secret), climbing, "link.wav", "folder/secret.wav"]
    lines = [
        {"model": "other", "text": f"taken {name}", "sentence": "taken", "kind": "recording", "audio": name}
        for name in names
    ]
    if place == "evaluation":
        write_evaluation_folder(run, [{"model": "other"}], lines)
    else:
        write_lines(folder / "index.jsonl", lines)
    sentences, notes = find_sentences(read_runs([run]))
    shown = {str(clip.audio) for sentence in sentences for clip in sentence.clips.values()}
    assert not shown & {str(folder / name) for name in names}
    assert not any(sentence.text.startswith("taken") for sentence in sentences)
    for name in names:
        assert any(
            note.startswith(f"{folder / name} is left out, because it leads to a file outside")
            for note in notes
        ), name


def test_a_file_of_the_folder_that_is_a_link_out_of_it_is_not_shown(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text(
        json.dumps({"step": 3, "loss": 1.0, "text": SECRET, "verdict": SECRET, "note": SECRET})
    )
    names = [
        "recipe.yaml",
        "metrics.jsonl",
        "trainer_state.json",
        "environment.json",
        "guard_report.json",
        "trainable_parameters.json",
        "evaluation/figures.json",
        "samples/step-6/index.jsonl",
        "_recordings/index.jsonl",
    ]
    for name in names:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(outside)
    page, _ = read_page(run)
    assert SECRET not in page
    for name in names:
        assert f"{name} is left out, because it leads to a file outside the run folder" in page, name


def test_rows_and_summaries_are_read_from_inside_the_folder_only(run: Path, tmp_path: Path) -> None:
    for name in ("data_summary.json", "evaluation/rows.jsonl"):
        (run / name).rename(tmp_path / "outside")
        (run / name).symlink_to(tmp_path / "outside")
    (contents,) = read_runs([run])
    assert "leads to a file outside" in contents.datasets["training"].note
    assert "leads to a file outside" in contents.evaluation.note


def test_a_link_within_the_folder_is_followed(run: Path) -> None:
    (run / "metrics.jsonl").rename(run / "log")
    (run / "metrics.jsonl").symlink_to("log")
    assert read_logs(run).value is not None


@pytest.mark.parametrize("kind", ["pipe", "folder", "large", "deep", "loop"])
def test_what_is_no_small_file_is_not_read(run: Path, kind: str) -> None:
    """A pipe would block forever; a large file would fill the memory and the page."""
    path = run / "environment.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_text(json.dumps({"x": "y" * 300_000}))
    elif kind == "deep":
        path.write_text('{"a":' * 50_000)
    else:
        path.symlink_to(path)
    (contents,) = read_runs([run])
    assert re.search(
        "environment.json (is left out|is not valid JSON|cannot be read)", contents.environment.note
    )


def write_long_log(run: Path, num_lines: int, num_metrics: int = 20) -> list[dict[str, Any]]:
    """Write a log with one peak, one dip and two damaged lines."""
    lines = [
        {"step": step, "loss": 2.0 + (step % 97) / 100}
        | {f"codebook_{k}_loss": 1.0 + ((step * 31 + k) % 89) / 100 for k in range(num_metrics - 1)}
        for step in range(1, num_lines + 1)
    ]
    lines[num_lines // 3]["loss"] = 99.5
    lines[num_lines // 2]["loss"] = 0.125
    write_lines(run / "metrics.jsonl", lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("[1, 2]\n")
        file.write('{"step": 9999999, "los')
    return lines


def test_a_long_log_makes_a_small_page(run: Path) -> None:
    lines = write_long_log(run, 8_000, num_metrics=9)
    page, _ = read_page(run)
    assert len(page) < 2_000_000
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', page)[1])[0]  # type: ignore[index]
    rows, values = numbers["curves"]["loss"]
    points = {numbers["steps"][row]: value for row, value in zip(rows, values, strict=True)}
    logged = {line["step"]: line["loss"] for line in lines}
    assert points.items() <= logged.items()
    assert (max(points.values()), min(points.values())) == (99.5, 0.125)
    assert (min(points), max(points)) == (1, 8_000)
    assert "Of 8,000 lines, the curves show the least and the greatest value" in page
    assert "2 of 8002 lines of metrics.jsonl cannot be read and are left out: line 8001, 8002." in page


@pytest.mark.parametrize("num_lines", [1, 2, 7, 8, 9, 100, 1000])
def test_a_thinned_log_keeps_the_extremes_of_every_stretch(num_lines: int) -> None:
    """Compare with the extremes of all lines of each bucket."""
    log = ThinnedLog(most_buckets=8)
    values = [float((step * 7919) % 1009) for step in range(num_lines)]
    for step, value in enumerate(values):
        log.add(step, {"loss": value})
    columns = log.list_columns()
    kept = dict(zip(columns["step"], columns["loss"], strict=True))
    width = log.lines_per_bucket
    assert width >= num_lines / 8
    expected = {0: values[0], num_lines - 1: values[-1]}
    for start in range(0, num_lines - num_lines % width, width):
        stretch = values[start : start + width]
        for extreme in (min(stretch), max(stretch)):
            expected[start + stretch.index(extreme)] = extreme
    assert expected.items() <= kept.items()
    assert len(kept) <= 2 * 8 + 2 + width


def test_memory_does_not_grow_with_the_log() -> None:
    log = ThinnedLog(most_buckets=16)
    sizes = []
    for step in range(20_000):
        log.add(step, {"loss": float(step % 101), "grad_norm": float("nan") if step % 1000 == 0 else 1.0})
        if step in (1_000, 19_999):
            sizes.append(sum(len(values) for values in log.list_columns().values()))
    assert sizes[1] <= 3 * sizes[0]


def test_many_metrics_and_many_runs_still_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"step": list(range(900))} | {f"m{k}": [float(k + i) for i in range(900)] for k in range(20)}
    fitted, is_thinned = fit_on_page([columns] * 6)
    assert is_thinned
    count = sum(value is not None for one in fitted for values in one.values() for value in values)
    assert count < 2 * thinning.MOST_VALUES_ON_A_PAGE
    log = ThinnedLog()
    log.add(1, {f"metric {k}": 1.0 for k in range(1000)})
    assert len(log.list_columns()) == thinning.MOST_KEYS + 1
    assert "are left out" in log.describe()


def test_numbers_that_no_float_can_hold_are_shown_as_infinite(run: Path) -> None:
    (run / "metrics.jsonl").write_text(
        f'{{"step": 3, "loss": 1{"0" * 400}}}\n{{"step": 1{"0" * 400}, "loss": 1}}\n'
    )
    logs = read_logs(run)
    assert logs.value == {"step": [3], "loss": ["inf"]}
    assert "1 of 2 lines" in logs.note


@pytest.mark.parametrize(
    "report",
    [
        {"layers": 3},
        {"layers": [1]},
        {"layers": [{"layer": 1}]},
        {"leaks": [{}]},
        {"verdict": [1], "layers": []},
        {"model_call": 3},
    ],
)
def test_a_guard_report_of_another_form_is_no_crash(run: Path, report: dict[str, Any]) -> None:
    write_json(run / "guard_report.json", report)
    (contents,) = read_runs([run])
    assert contents.guard.note == "guard_report.json is not a report of label-guard."


def test_a_script_in_any_text_is_shown_and_not_run(tmp_path: Path) -> None:
    """Every text of a run folder tries to inject HTML: names, values, keys and words."""
    run = write_run(tmp_path / f"run {EVIL.replace('/', '|')}")
    write_json(run / "environment.json", {EVIL: EVIL, "packages": {EVIL: EVIL}})
    write_json(run / "trainable_parameters.json", {EVIL: {"trained": "x", "all": None}, "k": 3})
    summary = {EVIL: EVIL, "languages": {EVIL: 1}, "speakers": [EVIL], "tasks": {EVIL: EVIL}}
    write_json(run / "data_summary.json", {"train": summary, "eval": summary})
    quoted = json.dumps(EVIL)
    (run / "recipe.yaml").write_text(
        f"model: {{name_or_path: {quoted}}}\ndata: {{train: {quoted}, eval: {quoted}}}\n{quoted}: {quoted}\n"
    )
    row = {"model": EVIL, "text": EVIL, "transcript": EVIL, "audio": "../samples/step-0/0000.wav"}
    write_evaluation_folder(run, [{"model": EVIL, EVIL: {"value": 1.0}}], [row], note=EVIL)
    guard = json.loads((run / "guard_report.json").read_text())
    guard |= {"verdict": EVIL, "contract": EVIL, "model_call": {EVIL: {}}}
    for layer in guard["layers"]:
        layer |= {"name": EVIL, "seen": {EVIL: 1}, "diverted": {EVIL: 1}}
    guard["leaks"][0] |= {"key": EVIL, "source": EVIL, "remedy": EVIL}
    write_json(run / "guard_report.json", guard)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 13, EVIL: 1.5, "eval_" + EVIL: 2.5}) + "\n")
    lines = [{"text": EVIL, "audio": f"{EVIL}.wav"}, {"text": EVIL, "audio": "0000.wav", "transcript": EVIL}]
    write_lines(run / "samples/step-6/index.jsonl", lines)
    other = write_run(tmp_path / "other")
    write_report([run, other], tmp_path / "both.html", title=EVIL, note=EVIL, facts={EVIL: EVIL})
    for page in (read_page(run)[0], (tmp_path / "both.html").read_text()):
        # The page's own: its numbers, and its code.
        assert len(re.findall(r"<script", page)) == 2
        assert "<img src=x" not in page
        assert "&lt;script&gt;" in page


def test_a_page_that_would_be_too_large_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgs_trainer.report.run_page.MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"more than 0\.001 MB"):
        write_report([run], run / "page.html")
    assert not (run / "page.html").exists()


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "metrics.json",
        "recipe.yaml",
        "environment.json",
        "guard_report.json",
        "data_summary.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "damaged", "a link out", "a folder"])
def test_the_page_names_no_folder_of_the_machine(run: Path, secret: Path, name: str, damage: str) -> None:
    path = run / name
    path.unlink(missing_ok=True)
    if damage == "damaged":
        path.write_bytes(b"{\xff")
    elif damage == "a link out":
        path.symlink_to(secret)
    elif damage == "a folder":
        path.mkdir()
    (run / "samples/step-6/index.jsonl").write_text("{}{")
    (run / "evaluation/figures.json").write_text("{")
    page, notes = read_page(run)
    shown = re.findall(r'<p class="missing">(.*?)</p>', page)
    assert shown
    assert notes
    assert str(run.parent) not in " ".join([*shown, *notes])


def test_a_disk_that_fails_in_the_middle_of_a_log_is_an_error_and_not_one_damaged_line(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_long_log(run, 40)

    class Failing(io.StringIO):
        def readline(self, size: int = -1) -> str:  # type: ignore[override]
            if self.tell() > 1_000:
                raise OSError(errno.EIO, "Input/output error")
            return super().readline(size)

    stored = (run / "metrics.jsonl").read_text()
    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Failing(stored))
    with pytest.raises(OSError, match=r"Input/output error: '.*metrics\.jsonl'"):
        read_logs(run)


def test_the_page_of_a_run_without_clips_imports_neither_torch_nor_transformers() -> None:
    code = "import higgs_trainer.report.run_page, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_metrics_that_only_some_lines_have_keep_their_extremes() -> None:
    log = ThinnedLog(most_buckets=4)
    rows = [
        {"loss": float(step % 7)} | ({"eval_loss": float(-step)} if step % 5 == 0 else {})
        for step in range(64)
    ]
    for step, metrics in enumerate(rows):
        log.add(step, metrics)
    columns = log.list_columns()
    kept = {key: [value for value in columns[key] if value is not None] for key in ("loss", "eval_loss")}
    assert (max(kept["loss"]), min(kept["loss"]), kept["eval_loss"][0], kept["eval_loss"][-1]) == (
        6,
        0,
        0,
        -60,
    )
    assert set(kept["eval_loss"]) < {float(-step) for step in range(0, 64, 5)}
