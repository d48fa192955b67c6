"""Loading a model and generating speech: the three lines, the voice, and what a killed job leaves."""

import base64
import io
import json
from pathlib import Path

import pytest
import soundfile
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from generation import generate_texts
from higgs_trainer.audio.files import read_audio, write_audio
from higgs_trainer.errors import UserError
from higgs_trainer.files import check_is_empty
from higgs_trainer.manifest.utterance import Clip, Utterance, Voice
from higgs_trainer.model.loading import load_trained
from higgs_trainer.speech import speech_model
from higgs_trainer.speech.clip_folder import ClipFolder, GeneratedCodes
from higgs_trainer.speech.generate import Request
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.speech.speech_model import (
    GeneratedSpeech,
    SpeechModel,
    generate_into_folder,
    load_speech_model,
)
from tiny import NUM_CODEBOOKS, ToneCodec, draw_codes, talkative_checkpoint, tiny_checkpoint


def make_model(**settings: object) -> SpeechModel:
    return SpeechModel(
        talkative_checkpoint(), ToneCodec(), sampling=Sampling(temperature=3.0, max_seconds=0.8), **settings
    )


def read_index(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["base", "adapter", "merged"])
def test_three_lines_generate_with_a_base_model_an_adapter_and_a_merged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.model.save_pretrained(tmp_path / "base")
    checkpoint.tokenizer.save_pretrained(tmp_path / "base")
    folder = tmp_path / "base"
    if kind != "base":
        lora = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(load_trained(tmp_path / "base").model, lora)
        folder = tmp_path / kind
        if kind == "merged":
            model = model.merge_and_unload()
            checkpoint.tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    monkeypatch.setattr(speech_model, "load_codec_of", lambda checkpoint, name: ToneCodec())

    model = load_speech_model(folder, sampling=Sampling(temperature=2.0, max_seconds=0.4))
    speech = model.generate("one two", seed=3)
    speech.write(tmp_path / "hello.wav")

    assert len(read_audio(tmp_path / "hello.wav")) == max(len(speech.waveform_S), 2400)
    expected = generate_texts(
        load_trained(folder), ["one two"], sampling=Sampling(temperature=2.0, max_seconds=0.4, seed=3)
    )[0]
    codes_FK = expected.codes_FK
    assert torch.equal(
        speech.waveform_S, ToneCodec().decode(codes_FK) if len(codes_FK) else torch.zeros(2400)
    )
    assert speech.stopped == expected.stopped


@pytest.mark.parametrize("device", ["warp", "meta"])
def test_a_device_that_cannot_hold_a_model_is_reported(tmp_path: Path, device: str) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.model.save_pretrained(tmp_path)
    checkpoint.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"'{device}'"):
        load_speech_model(tmp_path, device=device)


def test_the_voice_of_an_utterance_overrides_that_of_the_model(tmp_path: Path) -> None:
    for name, seconds in (("a", 0.2), ("b", 0.4)):
        write_audio(tmp_path / f"{name}.wav", torch.zeros(int(24_000 * seconds)))
    a, b = Clip(tmp_path / "a.wav", "aa"), Clip(tmp_path / "b.wav", "bb")
    model = make_model(voice=Voice("A room.", (a,), references_in_system=True), language="de")
    plain = model.build_request(Utterance("one"))
    # Python 3.13 compares the tensors of two clips one by one, so the fields are compared here.
    assert (plain.context.scene, plain.context.references_in_system) == ("A room.", True)
    assert [clip.text for clip in plain.context.references] == ["aa"]
    assert plain.context.references[0].codes_FK.shape == (5, NUM_CODEBOOKS)
    assert (plain.seed, plain.language) == (None, "de")
    own = model.build_request(Utterance("two", scene="Elsewhere.", references=(b, a), seed=4))
    assert [clip.text for clip in own.context.references] == ["bb", "aa"]
    assert (own.context.scene, own.context.references_in_system, own.seed) == ("Elsewhere.", False, 4)
    assert own.context.references[1].codes_FK is plain.context.references[0].codes_FK  # encoded once


def test_the_index_lists_the_clips_in_the_order_of_the_requests(tmp_path: Path) -> None:
    model = make_model()
    script = [Request("one"), Request("one two three four", seed=2), Request("six seven", seed=3)]
    waveforms = {}
    done = generate_into_folder(
        model, script, tmp_path / "out", batch_size=2, on_clip=lambda number, clip, w: waveforms.update({number: w})
    )  # fmt: skip
    rows = read_index(tmp_path / "out")
    assert [row["text"] for row in rows] == [line.text for line in script]
    assert [row["audio"] for row in rows] == ["0000.wav", "0001.wav", "0002.wav"]
    assert [row["seed"] for row in rows] == [0, 2, 3]
    for number, row in enumerate(rows):
        assert len(read_audio(tmp_path / "out" / row["audio"])) == len(waveforms[number])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0000.wav", "0001.wav", "0002.wav", "index.jsonl"
    ]  # fmt: skip
    assert done.num_clips == 3
    assert list(done.at_limit) == [row["audio"] for row in rows if not row["stopped"]]
    assert 0 < len(done.at_limit) < 3, "the case should have clips that stop, and some that do not"
    assert done.audio_seconds == pytest.approx(sum(row["seconds"] for row in rows))


def test_a_killed_job_leaves_complete_clips_and_their_lines(tmp_path: Path) -> None:
    def stop_at_the_third(number: int, clip: GeneratedCodes, waveform_S: Tensor) -> None:
        if len(list((tmp_path / "out").glob("*.wav"))) == 3:
            raise KeyboardInterrupt

    script = [Request("one two three"), Request("one"), Request("four five"), Request("four")]
    with pytest.raises(KeyboardInterrupt):
        generate_into_folder(make_model(), script, tmp_path / "out", batch_size=1, on_clip=stop_at_the_third)
    rows = read_index(tmp_path / "out")
    assert [row["text"] for row in rows] == ["one two three", "four five", "four"]  # the longest first
    for row in rows:
        assert len(read_audio(tmp_path / "out" / row["audio"])) / 24_000 == max(row["seconds"], 0.1)
    assert not list((tmp_path / "out").glob("*unfinished*"))


def test_a_clip_without_codes_becomes_a_moment_of_silence(tmp_path: Path) -> None:
    one = GeneratedCodes("one", draw_codes(5, 1), stopped=True)
    nothing = GeneratedCodes("two", draw_codes(0, 2), stopped=False, num_parts=2)
    with ClipFolder(tmp_path / "out", ToneCodec()) as folder:
        waveforms = [folder.write(number, clip) for number, clip in enumerate((one, nothing))]
    rows = read_index(tmp_path / "out")
    assert [(row["text"], row["seconds"], row["stopped"], row["parts"]) for row in rows] == [
        ("one", 0.2, True, 1),
        ("two", 0.0, False, 2),
    ]
    assert [len(waveform_S) for waveform_S in waveforms] == [4800, 2400]


def test_clips_are_not_written_into_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        generate_into_folder(make_model(), [Request("one")], tmp_path)
    with pytest.raises(UserError, match="not empty"):
        check_is_empty(tmp_path / "mine.txt")


def test_an_existing_index_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text("{}\n")
    with ClipFolder(tmp_path, ToneCodec()) as folder:
        folder.write(0, GeneratedCodes("one", draw_codes(5, 1), True))
    assert len(read_index(tmp_path)) == 1


def test_a_notebook_shows_the_text_and_a_player() -> None:
    speech = GeneratedSpeech("one <script>&", torch.linspace(-0.5, 0.5, 6000), 24_000, stopped=False)
    page = speech._repr_html_()
    assert "one &lt;script&gt;&amp;" in page
    assert "(0.2 s, cut at the limit)" in page
    encoded = page.split('<audio controls src="data:audio/mpeg;base64,')[1].split('"')[0]
    samples, sample_rate_hz = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert sample_rate_hz == 24_000
    assert abs(len(samples) - 6000) < 2400


def test_the_maximum_duration_can_be_given_for_one_text() -> None:
    model = make_model()
    assert model.generate("one", max_seconds=0.2).seconds < 0.3 < model.generate("one").seconds
    assert model.sampling.max_seconds == 0.8
    with pytest.raises(UserError, match="max_seconds is 0"):
        model.generate("one", max_seconds=0)


def test_a_maximum_duration_below_that_of_the_parts_replaces_it() -> None:
    model = SpeechModel(talkative_checkpoint(), ToneCodec(), sampling=Sampling(max_seconds=8, part_seconds=4))
    assert model._limit(2).sampling == Sampling(max_seconds=2)
    assert model._limit(6).sampling.part_seconds == 4
