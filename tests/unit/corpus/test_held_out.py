"""`prepare --held-out` divides rows by speaker, keeps what belongs together on one side, and writes both or none."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from higgs_trainer.corpus.held_out import parse_hold_out
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.prepare import PreparedSummary, prepare
from higgs_trainer.dataset.overlap import find_overlap
from higgs_trainer.dataset.prepared import PreparedRows, read_prepared
from higgs_trainer.errors import ManifestError, UserError

RATE_HZ, FRAME_SAMPLES = 24_000, 960


class Interrupted(Exception):
    """In place of a kill, a full disk or Ctrl-C."""


class LoudestCodec:
    """A codec with two codebooks. A code is the loudest sample of a frame in thousandths."""

    name, revision, fingerprint = "loudest", None, "f1"
    sample_rate_hz, frames_per_second, num_codebooks, codebook_size = RATE_HZ, 25.0, 2, 1001

    def __init__(self, fail_after: int = 1000) -> None:
        self.fail_after = fail_after
        self.encoded = 0

    def encode_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        if self.encoded >= self.fail_after:
            raise Interrupted
        self.encoded += len(waveforms)
        return [self.encode(waveform_S) for waveform_S in waveforms]

    def encode(self, waveform_S: Tensor) -> Tensor:
        frames_FS = waveform_S[: len(waveform_S) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        loudest_F = (frames_FS.abs().amax(dim=1) * 1000).long()
        return torch.stack([loudest_F, 1000 - loudest_F], dim=1)

    def decode(self, codes_FK: Tensor) -> Tensor:
        raise NotImplementedError


def quiet(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    return items


def write_clip(folder: Path, name: str, content: int) -> str:
    """Write a clip of 0.12 s. Equal numbers have equal samples."""
    samples_S = np.random.default_rng(content).uniform(-0.5, 0.5, 3 * FRAME_SAMPLES)
    soundfile.write(folder / f"{name}.wav", samples_S, RATE_HZ, subtype="PCM_16")
    return f"{name}.wav"


def make_rows(folder: Path, sizes: dict[str | None, int]) -> list[dict[str, Any]]:
    """Write a clip for each row. The words of all rows differ."""
    rows = []
    for speaker, size in sizes.items():
        for _ in range(size):
            number = len(rows)
            row = {"audio": write_clip(folder, f"clip{number}", number), "text": f"Sentence number {number}."}
            rows.append(row | ({} if speaker is None else {"speaker": speaker}))
    return rows


Run = Callable[..., PreparedSummary]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that prepares rows of clips in `tmp_path` into `tmp_path / "out"`."""

    def run_prepare(rows: Sequence[dict[str, Any]], held_out: str | int, **options: Any) -> PreparedSummary:
        (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        # A clip of noise is far too short for its words.
        settings = {"codec": LoudestCodec(), "progress": quiet, "limits": Limits(max_pace_factor=100.0)}
        settings |= {"held_out": held_out, **options}
        return prepare(tmp_path / "m.jsonl", tmp_path / "out", **settings)

    return run_prepare


def read_sides(folder: Path) -> tuple[PreparedRows, PreparedRows]:
    return read_prepared(folder / "out" / "train").rows, read_prepared(folder / "out" / "held_out").rows


def read_texts(rows: PreparedRows) -> set[str]:
    return {row["text"] for row in rows}


def test_each_speaker_gives_its_share(tmp_path: Path, run: Run) -> None:
    done = run(make_rows(tmp_path, {"anna": 40, "ben": 20, None: 10}), "10%")
    train, held_out = read_sides(tmp_path)
    assert Counter(row["speaker"] for row in held_out) == {"anna": 4, "ben": 2, None: 1}
    assert Counter(row["speaker"] for row in train) == {"anna": 36, "ben": 18, None: 9}
    assert read_texts(train) | read_texts(held_out) == {f"Sentence number {number}." for number in range(70)}
    assert done.folder == tmp_path / "out" / "train"
    assert done.held_out is not None
    assert (done.card.utterances, done.held_out.card.utterances) == (63, 7)
    assert done.held_out.folder == tmp_path / "out" / "held_out"
    assert "held out: 7 of 70 rows: 1 of 10 of rows without a speaker, 4 of 40 of anna, 2 of 20 of ben" in (
        done.notes
    )


def test_a_number_of_rows_is_met_exactly_where_shares_are_fractions(tmp_path: Path, run: Run) -> None:
    run(make_rows(tmp_path, {f"speaker {i}": 3 for i in range(9)}), 5)
    train, held_out = read_sides(tmp_path)
    assert len(held_out) == 5
    assert set(Counter(row["speaker"] for row in held_out).values()) == {1}
    assert len({row["speaker"] for row in train}) == 9


def test_the_draw_depends_on_the_seed_and_the_content_but_not_on_order_or_names(
    tmp_path: Path, run: Run
) -> None:
    rows = make_rows(tmp_path, {"anna": 30, "ben": 12})
    run(rows, 6)
    first = read_texts(read_sides(tmp_path)[1])
    shuffled = random.Random(1).sample(rows, len(rows))
    for number, row in enumerate(shuffled):
        (tmp_path / row["audio"]).rename(tmp_path / f"renamed{number}.wav")
        row["audio"] = f"renamed{number}.wav"
    run(shuffled, 6, overwrite=True)
    assert read_texts(read_sides(tmp_path)[1]) == first
    run(shuffled, 6, overwrite=True, held_out_seed=1)
    assert read_texts(read_sides(tmp_path)[1]) != first


@pytest.mark.parametrize("seed", range(4))
def test_what_belongs_together_is_on_one_side(tmp_path: Path, run: Run, seed: int) -> None:
    rows = make_rows(tmp_path, {"anna": 12, "ben": 12})
    # The same words in other recordings, also of another speaker.
    for number in range(4):
        rows[12 + number]["text"] = f"sentence NUMBER {number}"
    # Copies of a recording in files of other names, with another prompt.
    for number in range(4, 8):
        copy = {**rows[number], "audio": write_clip(tmp_path, f"copy{number}", number), "scene": "A hall."}
        rows.append(copy)
    # The recording of one row is the reference of another.
    for number in range(8, 10):
        rows[number] |= {
            "ref_audio": rows[number + 2]["audio"],
            "ref_text": rows[number + 2]["text"],
        }
    run(rows, "30%", held_out_seed=seed)
    train, held_out = read_sides(tmp_path)
    overlap = find_overlap(train, held_out)
    assert (overlap.recordings, overlap.texts) == ((), ())
    sides = [read_texts(train), read_texts(held_out)]
    for number in range(8, 10):
        linked = {f"Sentence number {number}.", f"Sentence number {number + 2}."}
        assert any(linked <= side for side in sides)
    assert 6 <= len(held_out) <= 8


def test_a_clip_that_is_only_a_reference_may_be_used_on_both_sides(tmp_path: Path, run: Run) -> None:
    rows = make_rows(tmp_path, {"anna": 20})
    reference = write_clip(tmp_path, "reference", 1000)
    run([{**row, "ref_audio": reference, "ref_text": "A reference."} for row in rows], 4)
    train, held_out = read_sides(tmp_path)
    assert (len(train), len(held_out)) == (16, 4)


def test_speakers_with_one_clip_are_drawn_from_together(tmp_path: Path, run: Run) -> None:
    run(make_rows(tmp_path, {"anna": 20} | {f"caller {number}": 1 for number in range(20)}), "10%")
    _, held_out = read_sides(tmp_path)
    assert Counter(row["speaker"] == "anna" for row in held_out) == {True: 2, False: 2}


def test_sentences_that_all_speakers_read_are_held_out_for_all_of_them(tmp_path: Path, run: Run) -> None:
    rows = make_rows(tmp_path, {f"speaker {i}": 10 for i in range(4)})
    for number, row in enumerate(rows):
        row["text"] = f"Sentence number {number % 10}."
    run(rows, "10%")
    _, held_out = read_sides(tmp_path)
    assert len(held_out) == 4
    assert len({row["speaker"] for row in held_out}) == 4
    assert len(read_texts(held_out)) == 1


def test_a_note_says_why_the_number_is_another(tmp_path: Path, run: Run) -> None:
    rows = make_rows(tmp_path, {"anna": 20})
    for number, row in enumerate(rows):
        row["text"] = f"Sentence number {number % 4}."
    done = run(rows, 2)
    assert done.held_out is not None
    assert done.held_out.card.utterances == 5
    assert any(note.startswith("5 rows were held out, not 2, because rows with") for note in done.notes)


def test_rows_that_all_belong_together_cannot_be_divided(tmp_path: Path, run: Run) -> None:
    rows = make_rows(tmp_path, {"anna": 6})
    for row in rows[1:]:
        row |= {"ref_audio": rows[0]["audio"], "ref_text": rows[0]["text"]}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="too many rows belong together"):
        run(rows, "20%")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "m.jsonl"])


@pytest.mark.parametrize("amount", ["", "5 %%", "-1", "0", "0%", "100%", "1.5", "many", "5%5"])
def test_an_amount_is_a_percentage_or_a_number_of_rows(amount: str) -> None:
    with pytest.raises(UserError, match="Give a percentage of the rows, such as 5%, or a number of rows"):
        parse_hold_out(amount)


def test_a_row_is_left_to_train_on(tmp_path: Path, run: Run) -> None:
    rows = make_rows(tmp_path, {"anna": 4})
    with pytest.raises(UserError, match=r"--held-out 4 would leave no row to train on: 4 rows are accepted"):
        run(rows, 4)
    assert parse_hold_out("0.1%").count_rows(20) == 1


def test_both_sets_are_written_or_none_and_a_run_resumes(tmp_path: Path, run: Run) -> None:
    rows = make_rows(tmp_path, {"anna": 10})
    with pytest.raises(Interrupted):
        run(rows, "20%", codec=LoudestCodec(fail_after=6), batch_seconds=0.3)
    assert not (tmp_path / "out").exists()
    second = LoudestCodec()
    done = run(rows, "20%", codec=second)
    assert (done.resumed, second.encoded) == (6, 4)
    resumed = [rows.column("text").to_pylist() for rows in read_sides(tmp_path)]
    run(rows, "20%", overwrite=True)
    assert [rows.column("text").to_pylist() for rows in read_sides(tmp_path)] == resumed


def test_rejected_rows_are_on_neither_side(tmp_path: Path, run: Run) -> None:
    rows = make_rows(tmp_path, {"anna": 10})
    rows[3]["audio"] = "missing.wav"
    done = run(rows, "20%", max_rejected=1)
    train, held_out = read_sides(tmp_path)
    assert (len(train), len(held_out), done.card.rejected) == (7, 2, 1)
    assert "m.jsonl" in (tmp_path / "out/train/rejected.jsonl").read_text()
    with pytest.raises(ManifestError):
        run(rows, "20%", overwrite=True)


@pytest.mark.parametrize("seed", range(3))
def test_drawn_references_are_of_the_same_side(tmp_path: Path, run: Run, seed: int) -> None:
    # The number is odd. One row of a speaker on a side would have no other one as its reference.
    done = run(make_rows(tmp_path, {"anna": 15, "ben": 7, "carl": 7}), 5, pair_seed=seed, held_out_seed=seed)
    for rows in read_sides(tmp_path):
        for row in rows:
            assert row["context_texts"][0] in read_texts(rows) - {row["text"]}
    assert done.held_out is not None
    assert done.held_out.card.utterances in (4, 5)


def test_what_is_overwritten(tmp_path: Path, run: Run) -> None:
    rows = make_rows(tmp_path, {"anna": 5})
    run(rows, 1)
    with pytest.raises(UserError, match=r"out is not empty\. Give another folder, or pass --overwrite"):
        run(rows, 2)
    run(rows, 2, overwrite=True)
    assert len(read_sides(tmp_path)[1]) == 2
    with pytest.raises(UserError, match=r"out is not a prepared dataset, so .*out is not overwritten"):
        run(rows, None, overwrite=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out also contains notes\.txt"):
        run(rows, 2, overwrite=True)
    (tmp_path / "out" / "notes.txt").unlink()
    (tmp_path / "out" / "train" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"train also contains notes\.txt"):
        run(rows, 2, overwrite=True)


def test_sets_are_found_after_a_kill_while_they_were_replaced(tmp_path: Path, run: Run) -> None:
    run(make_rows(tmp_path, {"anna": 5}), 1)
    (tmp_path / "out").rename(tmp_path / "_replaced-out")
    assert [len(rows) for rows in read_sides(tmp_path)] == [4, 1]
