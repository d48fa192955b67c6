"""Samples that are spoken during training can be heard in TensorBoard, Trackio and Weights & Biases."""

import io
import json
import runpy
import sqlite3
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
from tensorboardX.proto.event_pb2 import Event
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import WandbCallback

from higgs_trainer.errors import UserError
from higgs_trainer.recipe.schema import SamplesRecipe
from higgs_trainer.run import samples
from higgs_trainer.run.samples import speak_while_training
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.training import sample_reports
from higgs_trainer.training.callbacks import GenerateSamples
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import ToneCodec

script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "kill_and_resume.py"))
TEXTS = ["one <b>two</b>", "nine"]
STEPS = (0, 2, 3)
"""Before the first step, after the evaluation, and after the last step."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in "model", and a prepared dataset in "prepared"."""
    folder = tmp_path_factory.mktemp("reports")
    script["write_inputs"](folder, max_steps=3)
    return folder


def build(folder, output_dir, **arguments):
    options = {
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    prepared = folder / "prepared"
    given = TrainingArguments(str(output_dir), **(options | arguments))
    return HiggsAudioTrainer(folder / "model", given, train_dataset=prepared, eval_dataset=prepared)


@pytest.fixture(scope="module")
def spoken(folder, tmp_path_factory):
    """A run that reported its samples, and the folder of Trackio."""
    out = tmp_path_factory.mktemp("spoken")
    with pytest.MonkeyPatch.context() as patch:
        # Trackio reads the variable when it is imported.
        for module in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
            patch.delitem(sys.modules, module)
        patch.setenv("TRACKIO_DIR", str(out / "trackio"))
        trainer = build(
            folder, out / "run", report_to=["tensorboard", "trackio"], project="mine", run_name="voice"
        )
        speak_while_training(trainer, TEXTS, max_seconds=0.4)
        trainer.train()
    return out


def read_clips(out):
    """The clips on disk, by step and number."""
    clips = {}
    for step in STEPS:
        folder = out / "run" / "samples" / f"step-{step}"
        lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
        assert [line["text"] for line in lines] == TEXTS
        clips |= {(step, number): folder / line["audio"] for number, line in enumerate(lines)}
    return clips


def read_events(folder):
    """The values of TensorBoard's files: records of length, checksum, event, checksum."""
    values = {}
    for path in folder.rglob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            values |= {(value.tag, event.step): value for value in event.summary.value}
            data = data[16 + length :]
    return values


def test_tensorboard_has_every_clip_and_its_text(spoken):
    events = read_events(spoken / "run")
    for (step, number), path in read_clips(spoken).items():
        audio = events[f"samples/{number:04d}", step].audio
        expected_S, sample_rate_hz = soundfile.read(path, dtype="int16")
        heard_S, _ = soundfile.read(io.BytesIO(audio.encoded_audio_string), dtype="int16")
        assert audio.sample_rate == sample_rate_hz
        assert abs(heard_S.astype(int) - expected_S).max() <= 1
        (text,) = events[f"samples/{number:04d}/text/text_summary", step].tensor.string_val
        assert text.decode() == TEXTS[number]
    assert len([key for key in events if events[key].HasField("audio")]) == 6


def test_trackio_has_every_clip_and_its_text(spoken):
    with sqlite3.connect(spoken / "trackio" / "mine.db") as store:
        rows = [
            json.loads(metrics) for (metrics,) in store.execute("select metrics from metrics order by id")
        ]
    logged = [row for row in rows if "samples/0000" in row]
    assert [row["train/global_step"] for row in logged] == list(STEPS)
    clips = read_clips(spoken)
    for row in logged:
        for number, text in enumerate(TEXTS):
            entry = row[f"samples/{number:04d}"]
            assert (entry["_type"], entry["caption"]) == ("trackio.audio", text)
            stored = spoken / "trackio" / "media" / entry["file_path"]
            assert stored.read_bytes() == clips[row["train/global_step"], number].read_bytes()


def test_the_last_samples_are_sent_before_the_tools_are_closed(folder, tmp_path):
    """Without an evaluation, they are generated when training has ended."""
    trainer = build(folder, tmp_path, eval_strategy="no", report_to="tensorboard")
    speak_while_training(trainer, TEXTS, max_seconds=0.1)
    trainer.train()
    assert {step for tag, step in read_events(tmp_path) if tag == "samples/0000"} == {0, 3}


def test_the_losses_are_those_of_a_run_that_does_not_speak(spoken, folder, tmp_path):
    silent = build(folder, tmp_path, report_to="none")
    silent.train()
    lines = script["read_metrics"](spoken / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses == [entry["loss"] for entry in silent.state.log_history if "loss" in entry]


class StartedWandb(WandbCallback):
    """The callback of a run that was started elsewhere."""

    def __init__(self):
        self._wandb = None


def test_weights_and_biases_gets_every_clip_through_its_own_class(folder, tmp_path, monkeypatch):
    """The package is replaced by one that records its calls."""
    logged = []
    audio = lambda path, caption: (Path(path).parent.name, caption)  # noqa: E731
    wandb = SimpleNamespace(run=object(), Audio=audio, log=logged.append)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trainer = build(folder, tmp_path, report_to="none")
    trainer.add_callback(StartedWandb())
    speak_while_training(trainer, TEXTS, max_seconds=0.1)
    trainer.train()
    assert [entry["train/global_step"] for entry in logged] == list(STEPS)
    assert logged[1]["samples/0001"] == ("step-2", "nine")


def test_other_processes_neither_speak_nor_send(tmp_path):
    called = []
    callback = GenerateSamples(called.append, tmp_path / "samples", lambda *call: called.append(call) or True)
    state = TrainerState(global_step=0, is_world_process_zero=False)
    for event in (
        callback.on_train_begin,
        callback.on_step_begin,
        callback.on_evaluate,
        callback.on_train_end,
    ):
        event(None, state, TrainerControl())
    assert called == []


def test_samples_wait_for_a_tool_that_has_not_started(tmp_path):
    sent, started = [], []

    def send(folder, step):
        sent.extend([step] if started else [])
        return bool(started)

    callback = GenerateSamples(lambda folder: folder.mkdir(exist_ok=True), tmp_path / "samples", send)
    state = TrainerState(global_step=0)
    callback.on_train_begin(None, state, TrainerControl())
    assert sent == []
    started.append(True)
    callback.on_step_begin(None, state, TrainerControl())
    assert sent == [0]
    state.global_step = 4
    callback.on_evaluate(None, state, TrainerControl())
    callback.on_train_end(None, state, TrainerControl())
    assert sent == [0, 4]


def test_every_sample_is_spoken_in_its_language(tmp_path):
    rows = [
        {"text": text, "language": language, "context_texts": [], "context_codes": [], "scene": None}
        | {"num_references": 0, "task": "single_speaker"}
        for text, language in (("dva", "cs"), ("drie", None))
    ]
    section = SamplesRecipe(texts=("een",), held_out=2, language="nl")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "generate_codes", lambda _, requests, **__: asked.extend(requests) or ())
        samples.Samples(section, None, ToneCodec(), rows, seed=0, folder=tmp_path).generate(
            tmp_path / "step-1"
        )
    assert [(one.text, one.language) for one in asked] == [("een", "nl"), ("dva", "cs"), ("drie", "nl")]


def test_samples_are_drawn_as_the_recipe_says(tmp_path):
    section = SamplesRecipe(texts=("one",), temperature=0.7, top_k=5, top_p=0.8, max_seconds=3)
    used = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "generate_codes", lambda *_, sampling, is_sharded: used.append(sampling) or ())
        for one in (section, SamplesRecipe(texts=("one",), greedy=True)):
            samples.Samples(one, None, ToneCodec(), None, seed=2, folder=tmp_path).generate(
                tmp_path / f"step-{len(used)}"
            )
    assert used == [
        Sampling(temperature=0.7, top_k=5, top_p=0.8, max_seconds=3, seed=2),
        Sampling(greedy=True, max_seconds=10, seed=2),
    ]


def test_half_a_reference_is_refused(folder, tmp_path):
    trainer = build(folder, tmp_path, report_to="none")
    with pytest.raises(UserError, match="belong together"):
        speak_while_training(trainer, TEXTS, ref_text="one")


def test_nothing_is_read_without_a_tool_that_takes_sound(tmp_path):
    assert sample_reports.send_samples([], tmp_path / "missing", 1)
