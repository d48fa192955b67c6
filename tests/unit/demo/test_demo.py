"""The packaged data of the demo is consistent, and the demo evaluates and reports correctly."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from hearing import Parrot
from higgs_trainer.audio.files import SAMPLE_RATE_HZ, read_audio
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.demo import run_demo
from higgs_trainer.demo.from_scratch import read_digits
from higgs_trainer.demo.outcome import (
    ClipSet,
    build_table,
    evaluate_sets,
    print_outcome,
    read_value,
    write_clip_set,
    write_page,
)
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.evaluation_folder import read_evaluation
from higgs_trainer.evaluation.judging import ClipToJudge
from higgs_trainer.evaluation.normalized_text import DIGITS
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.model.loading import load_checkpoint, load_codec_of

ASSETS = Path(str(files("higgs_trainer_demo")))


def read_strings(name):
    return (ASSETS / f"{name}_strings.txt").read_text().splitlines()


def read_texts(name):
    return [utterance.text for utterance in read_rows(ASSETS / "new_voice" / f"{name}.jsonl")]


def test_the_base_model_has_the_codec_of_the_demo_and_a_token_for_each_digit():
    checkpoint = load_checkpoint(ASSETS / "base")
    assert load_codec_of(checkpoint).fingerprint == MelCodec.from_pretrained(ASSETS / "codec").fingerprint
    assert len(checkpoint.tokenizer(" ".join(DIGITS))["input_ids"]) == 10
    assert checkpoint.model.dtype == torch.float32
    assert sum(path.stat().st_size for path in (ASSETS / "base").rglob("*")) < 20e6


def test_the_strings_to_generate_are_in_no_corpus():
    strings = read_strings("unheard")
    recorded = {text for _, text, _ in read_digits(ASSETS / "digits")}
    recorded |= {*read_texts("train"), *read_texts("held_out")}
    assert len(set(strings)) == 40
    assert not recorded & set(strings)


def test_the_development_strings_are_in_no_corpus_and_are_not_judged():
    development = set(read_strings("development"))
    assert len(development) == 60
    assert not development & {*read_strings("unheard"), *read_texts("train"), *read_texts("held_out")}


def test_the_recordings_can_be_read_and_the_held_out_texts_differ_from_the_training_texts():
    train, held_out = (read_rows(ASSETS / "new_voice" / f"{name}.jsonl") for name in ("train", "held_out"))
    assert (len(train), len(held_out)) == (300, 40)
    assert not {u.text for u in train} & {u.text for u in held_out}
    assert 0.5 < len(read_audio(train[0].audio)) / SAMPLE_RATE_HZ < 6
    assert sum(path.stat().st_size for path in (ASSETS / "new_voice").rglob("*")) < 12e6


def test_every_clip_of_the_digits_has_codes():
    clips = read_digits(ASSETS / "digits")
    assert len(clips) == 2900
    assert all(codes_FK.shape[1] == 8 and len(codes_FK) > 10 for _, _, codes_FK in clips)


def test_missing_data_is_reported_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("higgs_trainer.demo.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install \./packages/higgs-trainer-demo"):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("from_scratch", [False, True])
def test_an_output_folder_with_files_is_rejected(tmp_path, from_scratch):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        run_demo(tmp_path, from_scratch=from_scratch)


@pytest.fixture
def outcome(tmp_path):
    """A run whose clips were judged: "before" is half right, in "after" a homophone was heard; and six recordings."""
    run = tmp_path / "after"
    run.mkdir()
    (run / "recipe.yaml").write_text("model: {name_or_path: base}\n")
    (run / "metrics.json").write_text("{}")
    voice = [0.1 * torch.randn(24_000) for _ in range(6)]
    texts, recorded = ["seven two", "four"], ["one", "one two", "three", "four five", "six", "nine"]
    sets = {
        "before": ClipSet(texts, [ClipToJudge(wave, stopped=False) for wave in voice[:2]]),
        "after": ClipSet(texts, [ClipToJudge(wave) for wave in voice[:2]]),
        "the real voice": write_clip_set(recorded, voice, tmp_path / "wav"),
    }
    recogniser = Parrot("70", "9", "72.", "for", "1.", "12", "3", "45", "6", "9")
    return run, evaluate_sets(sets, run, recogniser=recogniser, voice=voice)


def test_the_outcome_is_an_evaluation_of_the_run(outcome):
    run, report = outcome
    assert [read_value(report, name, "wer") for name in ("before", "after", "the real voice")] == [
        2 / 3,
        1 / 3,
        0,
    ]
    assert read_value(report, "after", "wer_homophones_forgiven") == 0
    assert [read_value(report, name, "stopped") for name in ("before", "after")] == [0, 1]
    assert report["second_minus_first"]["wer"]["value"] == pytest.approx(-1 / 3)
    before, after, real = read_evaluation(run).sets
    assert (before.name, after.name, real.name) == ("before", "after", "the real voice")
    assert after.scores["wer"].value == 1 / 3
    assert [clip.audio is None for clip in real.clips] == [False] * 5 + [True]
    assert all(clip.audio.is_file() for clip in real.clips[:5])


def test_the_outcome_is_a_table(outcome):
    _, report = outcome
    columns = [list(column.cells) for column in build_table(report).columns]
    assert [column[1] for column in columns if column[1][0].isdigit()][:2] == ["33.3%", "0.0%"]
    assert columns[0] == ["before", "after", "the real voice"]
    assert columns[-2:] == [["0%", "100%", "100%"], ["2", "2", "6"]]


def test_the_outcome_is_printed_a_line_each(outcome, capsys):
    print_outcome(outcome[1], Path("runs/demo/samples.html"))
    lines = capsys.readouterr().out.splitlines()
    assert any("the real voice" in line and "0.0%" in line for line in lines)
    assert lines[-1] == "Listen: runs/demo/samples.html"


def test_the_page_is_honest_and_names_the_real_checkpoint(outcome, tmp_path):
    path = write_page(tmp_path, outcome[0], "Demo")
    assert path == tmp_path / "samples.html"
    page = path.read_text()
    for expected in (
        "robotic",
        "synthetic",
        "bosonai/higgs-tts-2-3b-base",
        "higgs-trainer train single_speaker.yaml",
        "the real voice",
    ):
        assert expected in page
    assert page.count("<audio") == 5
