"""What a run shows: each log's keys, in three places; samples that change nothing; the best checkpoint; its end."""

import json
import runpy
import struct
from pathlib import Path

import pytest
import soundfile
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from hearing import Parrot
from higgs_trainer.errors import RecipeError
from higgs_trainer.evaluation.judging import Judges
from higgs_trainer.evaluation.speaker_encoder import load_speaker_encoder
from higgs_trainer.model.indexed_layers import IndexedDecoderLayer
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run import arguments
from higgs_trainer.run.assembly import build_run
from higgs_trainer.run.train import train
from higgs_trainer.training.metrics import list_held_out_metrics

script = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "kill_and_resume.py"))
IN_EVERY_LOG = {"step", "epoch", "loss", "audio_loss", "codebook_0_accuracy", "learning_rate", "grad_norm"}
IN_EVERY_LOG |= {"audio_seconds_per_second", "tokens", "tokens_per_second", "fill"}
IN_EVERY_LOG |= {f"codebook_{k}_loss" for k in range(8)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return script["write_inputs"](tmp_path_factory.mktemp("run"), max_steps=6)


def train_into(out, recipe, *overrides):
    train(read_recipe(recipe, ["--output_dir", str(out), *overrides]))
    return script["read_metrics"](out)


SAMPLES = ("--texts", "[one two]", "--held_out", "2", "--max_seconds", "0.4", "--eval_steps", "2")


@pytest.fixture(scope="module")
def watched(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("watched")
    return out, train_into(out, recipe, *SAMPLES, "--report_to", "tensorboard")


def test_every_log_has_every_key(watched):
    training = [line for line in watched[1] if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert all(line.keys() == IN_EVERY_LOG for line in training)
    held_out = [line for line in watched[1] if "eval_loss" in line]
    assert [line["step"] for line in held_out] == [2, 4, 6]
    assert all(line.keys() >= set(list_held_out_metrics(8)) for line in held_out)


def test_tokens_and_fill_are_those_of_the_packs(watched, recipe):
    run = build_run(read_recipe(recipe))
    lengths = [len(run.train_set.examples[i].input_ids) for i in range(len(run.train_set.examples))]
    logs = [line for line in watched[1] if "loss" in line]
    steps_an_epoch = len(run.trainer.train_dataset) // 2
    assert sum(line["tokens"] for line in logs[:steps_an_epoch]) == sum(lengths)
    for line in logs:
        assert line["fill"] == pytest.approx(line["tokens"] / (2 * 150))


@pytest.mark.parametrize("indexed", ["true", "false"])
def test_a_recipe_can_put_transformers_own_layers_back(indexed, recipe):
    run = build_run(read_recipe(recipe, ["--indexed_layers", indexed]))
    found = [isinstance(module, IndexedDecoderLayer) for module in run.trainer.model.modules()]
    assert any(found) == (indexed == "true")


def read_events(folder):
    """The scalars of TensorBoard's files: records of length, checksum, event, checksum."""
    scalars = {}
    for path in folder.rglob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return scalars


def test_tensorboard_has_the_same_figures(watched):
    out, lines = watched
    scalars = read_events(out)
    for line in lines:
        for key in ({"codebook_3_loss", "fill", "grad_norm"} & line.keys()) | (
            {"eval_audio_loss"} & line.keys()
        ):
            tag = f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"
            assert scalars[tag, line["step"]] == pytest.approx(line[key], rel=1e-6)


def test_sentences_are_spoken_at_each_evaluation_and_change_nothing(watched, recipe, tmp_path):
    out, lines = watched
    for step in (2, 4, 6):
        folder = out / "samples" / f"step-{step}"
        spoken = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
        assert [row["text"] for row in spoken] == ["one two", "one", "one one"]
        assert all(soundfile.info(folder / row["audio"]).frames for row in spoken)
    silent = train_into(tmp_path / "silent", recipe, "--eval_steps", "2")
    same = ("step", "loss", "codebook_7_loss", "grad_norm", "eval_loss")
    assert [[line.get(key) for key in same] for line in silent] == [
        [line.get(key) for key in same] for line in lines
    ]


def test_the_line_to_read(recipe, tmp_path, capsys):
    train_into(tmp_path, recipe, "--max_steps", "1", "--disable_tqdm", "false")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step 1/1: loss"))
    for part in ("codebook 0", "accuracy", "gradient", "rate 1.0e-03", "s of audio a second", "% full"):
        assert part in line


BEST = ("--eval_steps", "1", "--training.save_steps", "1", "--load_best_model_at_end")


@pytest.mark.parametrize(("options", "pick"), [((), min), (("--greater_is_better",), max)])
def test_the_best_checkpoint_is_kept_and_is_the_result(recipe, tmp_path, options, pick):
    """The smallest loss; or, if it is asked for, the largest, which is not the last since the model gets better."""
    metric = ("--metric_for_best_model", "eval_codebook_0_loss", *options)
    lines = train_into(tmp_path, recipe, *BEST, *metric)
    losses = {line["step"]: line["eval_codebook_0_loss"] for line in lines if "eval_loss" in line}
    best = pick(losses, key=losses.get)
    assert pick is min or best < 6
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / f"checkpoint-{best}")
    result, checkpoint = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path, tmp_path / f"checkpoint-{best}")
    )
    assert all((result[name] == checkpoint[name]).all() for name in result)


def test_a_run_that_no_longer_improves_stops(recipe, tmp_path):
    early = ("--metric_for_best_model", "audio_loss", "--learning_rate", "0", "--patience", "2")
    lines = train_into(tmp_path, recipe, *BEST, *early)
    assert max(line["step"] for line in lines) == 3  # the first is the best; two more are not better
    assert (tmp_path / "metrics.json").exists()


def listen(texts):
    """Hear all sentences wrong, then, from the second evaluation on, right; in the fourth one wrong again."""
    right, wrong = texts, ["nothing"] * len(texts)
    return Parrot(*wrong, *right, *right, *wrong, *wrong, *wrong)


def test_the_best_checkpoint_can_be_that_with_the_fewest_wrong_words(recipe, tmp_path, monkeypatch):
    """Only the listener is made up: its errors are lower the second time, and no loss has any say."""

    def load_judges(asr, *, language, with_quality, **_):
        assert (asr, language, with_quality) == (None, {"en": 2}, False)
        return Judges(listen(["one", "one one"]), load_speaker_encoder(), None, 24_000)

    monkeypatch.setattr("higgs_trainer.run.samples.load_judges", load_judges)
    judged = (
        "--held_out",
        "2",
        "--judged",
        "--samples.max_seconds",
        "0.4",
        "--metric_for_best_model",
        "eval_wer",
    )
    lines = train_into(tmp_path, recipe, *BEST, *judged)
    held_out = [line for line in lines if "eval_loss" in line]
    assert [line["eval_wer"] for line in held_out] == [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert all(-1 <= line["eval_similarity"] <= 1 and 0 <= line["eval_stopped"] <= 1 for line in held_out)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["best_model_checkpoint"], state["best_metric"]) == (str(tmp_path / "checkpoint-2"), 0.0)


WRONG = {
    "unjudged": (["--held_out", "2", "--metric_for_best_model", "eval_wer"], "'eval_wer' is never logged"),
    "judged nothing": (["--judged"], "samples.judged: has nothing to judge"),
    "upside down": (
        ["--held_out", "2", "--judged", "--metric_for_best_model", "eval_wer", "--greater_is_better"],
        "a smaller eval_wer is better",
    ),
    "metric": (["--metric_for_best_model", "eval_codebok_0_loss"], 'Did you mean "eval_codebook_0_loss"'),
    "a codebook too many": (["--metric_for_best_model", "codebook_8_loss"], "is never logged"),
    "too many sentences": (["--held_out", "12"], "data.eval has 11 utterances"),
    "reporter": (["--report_to", "tensorbord"], "Did you mean .tensorboard"),
}


@pytest.mark.parametrize(("overrides", "message"), WRONG.values(), ids=WRONG)
def test_what_would_be_found_out_at_the_first_evaluation_is_an_early_error(recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        build_run(read_recipe(recipe, overrides))


def test_a_reporter_that_is_not_installed_is_an_early_error(recipe, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: [])
    with pytest.raises(RecipeError, match=r"tensorboard is not installed\. .*higgs-trainer\[tensorboard\]"):
        build_run(read_recipe(recipe, ["--report_to", "tensorboard"]))
