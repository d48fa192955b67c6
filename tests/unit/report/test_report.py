"""The page of a run shows everything that the folder holds, and says what is missing."""

import datetime
import json
import math
import os
import re
import shutil

import pytest
import torch

from higgs_trainer.audio.files import write_audio
from higgs_trainer.errors import UserError
from higgs_trainer.report.clips import Budget, find_longest, show_sentences
from higgs_trainer.report.listening import ClipFile, SpokenSentence, find_sentences
from higgs_trainer.report.logs import choose_charts, read_logs
from higgs_trainer.report.run_page import write_report
from higgs_trainer.report.runs import read_runs
from higgs_trainer.report.scores import build_table
from higgs_trainer.report.tiles import build_tiles
from higgs_trainer.report.title import build_title
from higgs_trainer.run_folder import REAL_VOICE, REAL_VOICE_DECODED
from run_folders import (
    EVIL,
    make_logs,
    tone,
    write_clips,
    write_evaluation_folder,
    write_json,
    write_run,
)

WITHOUT_SCRIPT = "The curves need JavaScript, which is turned off here."


def list_columns(clips):
    return [column for _, column in clips]


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "first")


def read_page(*runs, **options):
    """The page's text as one line, and what its writer says of it."""
    path = runs[0].parent / "page.html"
    written = write_report(runs, path, **options)
    return re.sub(r"\s+", " ", path.read_text()), written


def test_a_whole_folder_leaves_nothing_to_be_missed(run):
    page, written = read_page(run, title="A title", note="Listen for the words.", facts={"Why": "because"})
    assert written.notes == ()
    assert re.findall('<p class="missing">(.*?)</p>', page) == [WITHOUT_SCRIPT]
    for expected in (
        "A title",
        "Listen for the words.",
        "because",
        "LoRA on base",
        "125 of 1,000 parameters (12.5%)",
    ):
        assert expected in page
    assert "single_speaker: 31" in page
    assert "torch: 2.13.0" in page
    assert "set task_type to None" in page


def test_a_page_says_what_is_missing(tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    (run / "recipe.yaml").write_text("model: {name_or_path: some/model}\n")
    write_json(run / "metrics.json", {})
    page, written = read_page(run)
    for name in (
        "metrics.jsonl",
        "guard_report.json",
        "trainable_parameters.json",
        "environment.json",
        "evaluation/figures.json",
    ):
        assert f"{name} is not in the run folder" in page, name
    assert "The recipe does not set data.train." in page
    assert "all parameters on model" in page
    assert "bare has no clips" in written.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("guard_report.json", "{", "guard_report.json is not valid JSON"),
        ("environment.json", "[1]", "environment.json does not contain a JSON object"),
        ("evaluation/figures.json", "\xff", "figures.json cannot be read"),
        ("evaluation/rows.jsonl", "no json\n", "rows.jsonl cannot be read"),
        ("metrics.jsonl", '{"step": 3, "loss": 2.5}\n{"step": 6, "lo', "1 of 2 lines of"),
        ("metrics.jsonl", "", "metrics.jsonl is empty"),
        ("samples/step-12/index.jsonl", "no json\n", "1 of 1 lines of"),
        ("_recordings/index.jsonl", "no json\n", "1 of 1 lines of"),
        ("samples/step-12/0001.wav", "no sound", "0001.wav cannot be read as audio"),
        ("recipe.yaml", "{", "The recipe does not set data.train."),
    ],
)
def test_what_is_damaged_is_said(run, name, content, said):
    (run / name).write_bytes(content.encode("latin-1"))
    assert said in read_page(run)[0]


@pytest.mark.parametrize(
    "value", [None, 3, "text", [], [1], {"models": 3}, {"models": [{"model": 1, "wer": 2}]}]
)
def test_an_evaluation_of_another_form_is_no_crash(run, value):
    write_json(run / "evaluation" / "figures.json", value)
    read_page(run)


def test_recordings_that_are_not_there_are_said(run):
    shutil.rmtree(run / "_recordings")
    assert "first: index.jsonl is not in" in read_page(run)[1].notes[0]


def test_the_logged_numbers_are_in_the_page_to_the_last_digit(run):
    page, _ = read_page(run)
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', page)[1])
    assert read_rows(numbers[0]) == make_logs()


def read_rows(numbers):
    """Return the rows of the numbers in a page."""
    rows = [{"step": step} for step in numbers["steps"]]
    for key, (places, values) in numbers["curves"].items():
        for place, value in zip(places, values, strict=True):
            rows[place][key] = value
    return rows


def test_a_name_in_the_log_cannot_end_the_script_that_holds_it(run):
    whole = read_page(run)[0].count("<script")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 13, f"</script>{EVIL}": 1.5}) + "\n")
    assert read_page(run)[0].count("<script") == whole


def test_what_is_not_finite_is_kept_as_text(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "loss": NaN, "grad_norm": Infinity, "note": "text", "flag": true}\n')
    columns = read_logs(run).value
    assert (columns["loss"][-1], columns["grad_norm"][-1]) == ("nan", "inf")
    assert "note" not in columns
    assert "flag" not in columns
    assert '"nan"' in read_page(run)[0]


def test_without_its_own_log_the_trainers_state_is_read(run):
    (run / "metrics.jsonl").unlink()
    write_json(
        run / "trainer_state.json", {"log_history": [{"step": 5, "loss": 1.5}, {"step": 7, "loss": 1.25}]}
    )
    logs = read_logs(run)
    assert logs.value == {"step": [5, 7], "loss": [1.5, 1.25]}
    assert "trainer_state.json" in logs.note


def test_charts_are_of_what_was_logged_and_name_what_was_not():
    groups = choose_charts(
        [
            {
                "step": [1],
                "loss": [2.0],
                "text_loss": [1.0],
                "codebook_10_loss": [1.0],
                "codebook_9_loss": [1.0],
            }
        ]
    )
    assert [[chart.title for chart in group.charts] for group in groups] == [
        ["Loss", "Text loss"],
        ["Codebook 9", "Codebook 10"],
        [],
    ]
    assert groups[2].note == "Not logged: learning rate, gradient norm."


def test_the_headline_compares_before_and_after(run):
    tiles = build_tiles(read_runs([run]))
    assert [(tile.title, tile.before, tile.after, tile.verdict, tile.small) for tile in tiles] == [
        ("Word errors", "50.0%", "12.5%", "better", "95%: 5% to 25%"),
        ("Likeness to the voice", "0.500", "0.750", "better", ""),
        ("Ended by itself", "100%", "100%", "the same", ""),
        (
            "Held-out loss",
            f"{5 / math.sqrt(6) + 1 / 3:.3f}",
            f"{5 / math.sqrt(12) + 1 / 3:.3f}",
            "lower",
            "step 6 to step 12",
        ),
    ]


def test_a_figure_that_got_worse_is_called_so(run):
    models = [
        {"model": name, "wer": {"value": wer}, "similarity": {"value": 1 - wer}}
        for name, wer in (("before", 0.1), ("after", 0.2))
    ]
    write_evaluation_folder(run, models, [])
    assert [tile.verdict for tile in build_tiles(read_runs([run]))][:2] == ["worse", "worse"]


def test_a_difference_within_the_interval_is_unclear_without_a_test(run):
    after = {"value": 0.2, "low": 0.1, "high": 0.3}
    models = [{"model": "before", "wer": {"value": 0.15}}, {"model": "after", "wer": after}]
    write_evaluation_folder(run, models, [])
    assert build_tiles(read_runs([run]))[0].verdict == "no clear difference"


def test_the_real_voice_is_next_to_each_figure(run):
    """On the bar the worst figure is at 0 and the best at 100, also where lower is better."""
    sets = {"before": 0.5, "after": 0.2, REAL_VOICE: 0.1, REAL_VOICE_DECODED: 0.15}
    models = [{"model": name, "wer": {"value": wer}} for name, wer in sets.items()]
    write_evaluation_folder(run, models, [])
    tile = build_tiles(read_runs([run]))[0]
    assert tile.recordings == [(REAL_VOICE, "10.0%"), (REAL_VOICE_DECODED, "15.0%")]
    assert (tile.bar.before, tile.bar.after) == pytest.approx((0, 75))
    assert tile.bar.recordings == pytest.approx([100, 87.5])


def test_a_figure_without_one_from_before_has_a_tile_and_no_verdict(run):
    write_evaluation_folder(run, [{"model": "after", "wer": {"value": 0.2}}], [])
    tile = build_tiles(read_runs([run]))[0]
    assert (tile.before, tile.after, tile.verdict, tile.bar) == ("", "20.0%", "", None)


def test_the_title_says_what_was_trained_and_when(run):
    day = datetime.datetime(2026, 11, 24, 12).timestamp()
    for path in run.iterdir():
        os.utime(path, (day, day))
    assert build_title(read_runs([run])) == "first, LoRA on base, 24 Nov 2026"
    (run / "recipe.yaml").write_text("model: {name_or_path: some/higgs-audio-v2}")
    assert build_title(read_runs([run])) == "first, all parameters on higgs-audio-v2, 24 Nov 2026"


def test_recordings_of_other_sentences_are_shown_with_the_sentences_that_have_none(run):
    """Two recordings for three sentences: the first is used twice, and neither has a card of its own."""
    shutil.rmtree(run / "samples")
    rows = []
    for name, texts in (("before", "abc"), ("after", "abc"), (REAL_VOICE, "xy"), (REAL_VOICE_DECODED, "xy")):
        for text in texts:
            audio = f"{name}-{text}.wav"
            write_audio(run / "evaluation" / audio, tone())
            rows.append({"model": name, "text": text, "audio": audio})
    write_evaluation_folder(
        run, [{"model": name} for name in dict.fromkeys(row["model"] for row in rows)], rows
    )
    sentences, _ = find_sentences(read_runs([run]))
    assert [one.text for one in sentences] == ["a", "b", "c"]
    for sentence, words in zip(sentences, "xyx", strict=True):
        assert list_columns(sentence.clips) == ["before", "after", REAL_VOICE, REAL_VOICE_DECODED]
        assert [clip.says for clip in sentence.clips.values()] == [None, None, words, words]


def test_recordings_alone_keep_their_cards(run):
    shutil.rmtree(run / "samples")
    write_audio(run / "evaluation" / "a.wav", tone())
    rows = [{"model": "recordings", "text": "a", "audio": "a.wav"}]
    write_evaluation_folder(run, [{"model": "recordings"}], rows)
    sentences, _ = find_sentences(read_runs([run]))
    assert [(one.text, list_columns(one.clips)) for one in sentences] == [("a", [REAL_VOICE])]


def test_all_but_eight_sentences_are_folded(tmp_path):
    page, _ = read_page(write_run(tmp_path / "run", texts=tuple(f"sentence {n}" for n in range(11))))
    shown, folded = page.split("<summary>3 more sentences</summary>")
    assert shown.count("<h3>sentence") == 8
    assert folded.count("<h3>sentence") == 3
    assert '<ol class="cards" start="9">' in folded


def write_comparison(run, *roles, p=0.03125):
    """Write what ``higgs-trainer evaluate`` leaves: two models on the same sentence, and a test."""
    models, rows = [], []
    for number, (role, wer) in enumerate(zip(roles, (0.5, 0.125), strict=True), start=1):
        audio = f"{number}-model/0000.wav"
        write_audio(run / "evaluation" / audio, tone(200 * number))
        name = f"model {number}"
        rows.append({"model": name, "text": "one two", "audio": audio, "transcript": "one", "word_errors": 1})
        figure = {"value": wer, "low": wer / 2, "high": 2 * wer, "n": 6}
        models.append({"model": name, "role": role, "wer": figure, "quality": None})
    test = {"wer": {"value": -0.375, "low": -0.5, "high": -0.25, "p": p, "n": 6}, "quality": None}
    write_evaluation_folder(run, models, rows, second_minus_first=test)


def test_a_comparison_with_the_base_is_before_and_after(run):
    write_comparison(run, "before", "after")
    folder = read_runs([run])[0]
    tile = build_tiles([folder])[0]
    assert (tile.title, tile.before, tile.after, tile.verdict) == ("Word errors", "50.0%", "12.5%", "better")
    assert tile.small == "95%: 6.2% to 25.0%; p 0.03"
    sentences, _ = find_sentences([folder])
    assert sentences[0].clips["first", "before"].audio == run / "evaluation" / "1-model" / "0000.wav"
    assert sentences[0].clips["first", "after"].transcript == "one"


def test_what_may_be_chance_is_called_neither_better_nor_worse(run):
    write_comparison(run, "before", "after", p=0.0625)
    tile = build_tiles(read_runs([run]))[0]
    assert (tile.before, tile.after, tile.verdict) == ("50.0%", "12.5%", "no clear difference")


def test_a_model_that_is_neither_keeps_its_name(run):
    write_comparison(run, None, "after")
    assert [name for _, name, _ in build_table(read_runs([run])).rows] == ["model 1", "after"]


def test_scores_of_any_name_are_in_the_table(run):
    scores = {"my_score": {"value": 0.123456}, "wer": {"value": 0.5, "low": 0.25, "high": 0.75}, "cer": None}
    write_evaluation_folder(run, [{"model": "after"} | scores], [])
    table = build_table(read_runs([run]))
    assert table.titles == ["Word errors", "my_score"]
    assert table.rows == [("first", "after", ["50% (25% to 75%)", "0.1235"])]


def test_each_sentence_has_its_clips_in_order(run):
    sentences, notes = find_sentences(read_runs([run]))
    assert notes == []
    spoken, other = sentences
    assert list_columns(spoken.clips) == ["before", "after", REAL_VOICE_DECODED, "reference"]
    assert list_columns(spoken.during_training) == ["step 6"]
    assert spoken.clips["first", "reference"].says == "the reference’s words"
    # The judged clip is shown, not the sample of the same text.
    assert spoken.clips["first", "before"].transcript == "One, two."
    assert (other.text, list_columns(other.clips)) == (EVIL, ["before", "after", "reference"])
    assert [clip.stopped for clip in other.clips.values()] == [False, True, True]


def test_a_run_without_a_first_sample_has_no_before(run):
    shutil.rmtree(run / "samples" / "step-0")
    shutil.rmtree(run / "evaluation")
    sentences, _ = find_sentences(read_runs([run]))
    assert list_columns(sentences[0].clips) == ["after", REAL_VOICE_DECODED, "reference"]
    assert list_columns(sentences[0].during_training) == ["step 6"]


def test_after_is_the_best_step_where_that_was_kept(run):
    shutil.rmtree(run / "evaluation")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        recipe.replace("training: {", "training: {load_best_model_at_end: true, ")
    )
    write_json(run / "trainer_state.json", {"best_global_step": 6})
    sentences, _ = find_sentences(read_runs([run]))
    assert sentences[0].clips["first", "after"].audio.parent.name == "step-6"
    assert list_columns(sentences[0].during_training) == ["step 12"]


def test_several_references_are_numbered(run):
    lines = [{"sentence": "one two", "kind": "reference", "text": words} for words in ("first", None)]
    write_clips(run / "_recordings", lines)
    sentences, _ = find_sentences(read_runs([run]))
    assert list_columns(sentences[0].clips) == ["before", "after", "reference", "reference 2"]
    assert [clip.says for clip in sentences[0].clips.values()][2:] == ["first", None]


def test_steps_are_ordered_as_numbers(run):
    write_clips(run / "samples" / "step-100", [{"text": "one two"}], 220)
    shutil.rmtree(run / "evaluation")
    sentences, _ = find_sentences(read_runs([run]))
    assert list_columns(sentences[0].during_training) == ["step 6", "step 12"]
    assert sentences[0].clips["first", "after"].audio.parent.name == "step-100"


def test_two_runs_stand_side_by_side(run, tmp_path):
    page, _ = read_page(run, write_run(tmp_path / "second", shift=0.5))
    sentences, _ = find_sentences(read_runs([run, tmp_path / "second"]))
    columns = ("before", "after", REAL_VOICE_DECODED, "reference")
    assert list(sentences[0].clips) == [(run, column) for run in ("first", "second") for column in columns]
    assert "<title>first and second, LoRA on base, " in page
    assert '<th scope="row">training.learning_rate</th><td>0.0001</td><td>0.5001</td>' in page
    assert '<th scope="row">adapter.r</th>' not in page  # the same in both


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [write_run(tmp_path / name / "out") for name in ("a", "b")]
    assert [run.name for run in read_runs(runs)] == ["a/out", "b/out"]


def test_what_cannot_be_a_page_is_a_mistake(run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folders, message in (
        ([tmp_path / "nowhere"], "is not a folder"),
        ([empty], "is not a run folder .it holds none of environment.json"),
        ([run, run / ".." / "first"], "given twice"),
        ([write_run(tmp_path / str(n)) for n in range(7)], "7 runs are too many"),
    ):
        with pytest.raises(UserError, match=message):
            write_report(folders, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(UserError, match=re.escape(f"give a file, such as {empty / 'report.html'}")):
        write_report([run], empty)


def test_a_folder_with_runs_in_it_names_them(tmp_path):
    """The demo's output folder holds a recipe, which is not yet a run, and the run in a folder below."""
    demo = tmp_path / "demo"
    (demo / "base").mkdir(parents=True)
    (demo / "recipe.yaml").write_text("training: {output_dir: after}\n")
    write_json(demo / "after" / "environment.json", {})
    only = f"{demo} is not a run folder; {demo}/after is one: higgs-trainer report {demo}/after"
    with pytest.raises(UserError, match=re.escape(only)):
        write_report([demo], tmp_path / "page.html")
    write_json(demo / "again" / "environment.json", {})
    with pytest.raises(UserError, match=re.escape(f"contains several: {demo}/after, {demo}/again; give one")):
        write_report([demo], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_what_does_not_fit_is_left_out_and_counted(tmp_path):
    path = tmp_path / "clip.wav"
    write_audio(path, tone(seconds=1.0))
    sentences = [
        SpokenSentence(str(n), {("run", "after"): ClipFile(path)}, {("run", "step 1"): ClipFile(path)})
        for n in range(4)
    ]
    one_clip = Budget()
    whole = one_clip.left_bytes
    one_clip.show(sentences[0].text, sentences[0].clips)
    size = whole - one_clip.left_bytes
    shown, notes = show_sentences(sentences, Budget(left_bytes=round(5.5 * size)))
    assert [len(sentence.clips) for sentence in shown] == [1, 1, 1, 1]  # before those on the way
    assert [len(sentence.during_training) for sentence in shown] == [1, 0, 0, 0]
    assert notes[0].startswith("3 further clips are left out")


def test_a_clip_is_judged_by_its_words_and_cut_where_it_is_endless(tmp_path):
    write_audio(tmp_path / "long.wav", tone(seconds=31))
    write_audio(tmp_path / "empty.wav", torch.zeros(0))
    clips = {
        ("run", "right"): ClipFile(tmp_path / "long.wav", "One, 2!", is_right=True),
        ("run", "wrong"): ClipFile(tmp_path / "long.wav", "", is_right=False),
        ("run", "unheard"): ClipFile(tmp_path / "empty.wav"),
    }
    (sentence,), _ = show_sentences([SpokenSentence("one two", clips)], Budget())
    right, wrong, unheard = sentence.clips.values()
    assert (right.is_right, wrong.is_right, unheard.is_right) == (True, False, None)
    assert right.seconds == find_longest(sentence.clips) == 31
    assert right.note == "the first 30 s"
    assert (unheard.audio, unheard.spectrogram, unheard.seconds) == ("", "", 0)


def test_a_run_that_a_killed_command_moved_away_is_found(tmp_path):
    (tmp_path / "_earlier-run").mkdir()
    (tmp_path / "_earlier-run" / "metrics.json").write_text("{}")
    assert len(read_runs([tmp_path / "run"])) == 1
    assert (tmp_path / "run" / "metrics.json").is_file()
