"""The first sentence of a page says what the figures say, and nothing more."""

import json

import pytest

from higgs_trainer.report.first_sentence import describe_outcome
from higgs_trainer.report.runs import read_runs
from run_folders import write_evaluation_folder, write_lines, write_run


def figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def describe(folder, before=None, after=None, real=None, decoded=None, p=None):
    """Write an evaluation with these figures, {name: value or figure}, and describe it."""
    sets = {
        "before": before,
        "after": after,
        "the real voice": real,
        "the real voice through the codec": decoded,
    }
    models = [
        {"model": name} | {key: one if isinstance(one, dict) else figure(one) for key, one in scores.items()}
        for name, scores in sets.items()
        if scores is not None
    ]
    tests = {key: {"value": 0.0, "p": value} for key, value in (p or {}).items()}
    write_evaluation_folder(folder, models, [], second_minus_first=tests or None)
    return describe_outcome(read_runs([folder])[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "nl")


def test_a_voice_that_is_reached_resembles_the_recordings(run):
    assert (
        describe(
            run,
            {"similarity": 0.58, "wer": 0.3},
            {"similarity": 0.84, "wer": 0.11},
            {"similarity": 0.90, "wer": 0.03},
        )
        == "The voice now resembles the recordings (similarity 0.58 to 0.84; the real voice 0.90); 1 word in 9 is "
        "heard wrong (before 3 in 10; the real voice 1 in 33)."
    )


def test_the_voice_through_the_codec_is_the_measure_if_it_alone_was_judged(run):
    assert describe(run, {"similarity": 0.5}, {"similarity": 0.8}, decoded={"similarity": 0.85}) == (
        "The voice now resembles the recordings (similarity 0.50 to 0.80; the real voice through the codec 0.85)."
    )


@pytest.mark.parametrize(
    ("before", "after", "real", "said"),
    [
        (
            0.5,
            0.6,
            0.9,
            "is closer to the recordings than before (similarity 0.50 to 0.60; the real voice 0.90)",
        ),
        (0.5, 0.8, None, "is closer to the recordings than before (similarity 0.50 to 0.80)"),
        (0.841, 0.844, None, "is closer to the recordings than before (similarity 0.841 to 0.844)"),
        (
            0.8,
            0.6,
            0.9,
            "is less like the recordings than before (similarity 0.80 to 0.60; the real voice 0.90)",
        ),
        (0.8, 0.8, None, "is as like the recordings as before (similarity 0.80)"),
        (0.8, figure(0.82, 0.79, 0.85), None, "is not clearly more or less like the recordings than before"),
        (None, 0.8, 0.9, "was compared with the recordings (similarity 0.80; the real voice 0.90)"),
    ],
)
def test_the_likeness_has_the_right_words(run, before, after, real, said):
    before, real = (None if value is None else {"similarity": value} for value in (before, real))
    assert describe(run, before, {"similarity": after}, real).startswith(f"The voice {said}")


@pytest.mark.parametrize(
    ("before", "after", "p", "said"),
    [
        (0.03, 0.11, 0.001, "1 word in 9 is heard wrong, more than before (1 in 33)."),
        (0.11, 0.09, 0.4, "1 word in 11 is heard wrong (before 1 in 9, which may be chance)."),
        (0.114, 0.111, 0.01, "11.1% of the words are heard wrong (before 11.4%)."),
        (0.25, 0.25, 1.0, "1 word in 4 is heard wrong, as before."),
        (0.9, 0.0, 0.001, "No word is heard wrong (before 9 in 10)."),
        (0.1, 1.3, 0.001, "10 words in 10 are heard wrong, more than before (1 in 10)."),
        (0.5, 0.0004, 0.001, "Less than 1 word in 1,000 is heard wrong (before 5 in 10)."),
        (None, 0.66, None, "7 words in 10 are heard wrong."),
    ],
)
def test_the_words_have_the_right_words(run, before, after, p, said):
    before = None if before is None else {"wer": before}
    assert describe(run, before, {"wer": after}, p={"wer": p} if before else None) == said


def test_characters_are_counted_where_words_were_not_judged(run):
    assert describe(run, {"cer": 0.5}, {"cer": 0.2}) == "1 character in 5 is heard wrong (before 5 in 10)."


def test_clips_without_an_end_are_said(run):
    said = describe(run, None, {"wer": 0.0, "stopped": 0.95})
    assert said == "No word is heard wrong; 1 clip in 20 did not end by itself."
    assert describe(run, None, {"stopped": 0.4}) == "6 clips in 10 did not end by themselves."


def test_a_loss_alone_is_never_called_better(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluation" / "figures.json").unlink()
    assert describe_outcome(read_runs([run])[0]) == (
        "The held-out loss fell from 2.375 to 1.777 between the steps 6 and 12; how it sounds was not judged."
    )
    write_lines(run / "metrics.jsonl", [{"step": step, "loss": step / 2} for step in (1, 2000)])
    assert describe_outcome(read_runs([run])[0]) == (
        "The training loss rose from 0.500 to 1000.000 between the steps 1 and 2,000; how it sounds was not judged."
    )
    write_lines(run / "metrics.jsonl", [json.loads('{"step": 1, "loss": 2.0}'), {"step": 2, "loss": 2.0}])
    assert "loss is 2.000 as before, between the steps 1 and 2" in describe_outcome(read_runs([run])[0])
    write_lines(run / "metrics.jsonl", [{"step": 1, "loss": 0.5}])
    assert describe_outcome(read_runs([run])[0]) == (
        "Fewer than two losses are logged, and how it sounds was not judged."
    )
