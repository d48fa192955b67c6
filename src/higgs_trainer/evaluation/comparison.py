"""Evaluate one model, or compare two: each generates the same sentences, and the same judges score the clips."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.audio.files import read_audio, write_audio
from higgs_trainer.dataset.prepared import read_prepared
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.evaluation_folder import write_evaluation
from higgs_trainer.evaluation.figures import (
    ModelFigures,
    build_report,
    compute_differences,
    compute_figures,
)
from higgs_trainer.evaluation.judging import (
    ClipToJudge,
    JudgedClip,
    Judges,
    check_judges,
    judge_clips_with_progress,
)
from higgs_trainer.evaluation.languages import (
    DEFAULT_LANGUAGE,
    LANGUAGE_OPTION,
    check_languages_are_named,
    count_languages,
)
from higgs_trainer.evaluation.sentences import EvaluationSentence, build_sentences, read_sentences
from higgs_trainer.evaluation.voices import embed_voices
from higgs_trainer.manifest.utterance import Utterance, Voice
from higgs_trainer.model.loaded_dtype import AUTO
from higgs_trainer.model.model_folder import list_inputs
from higgs_trainer.outputs import Input, check_apart, check_can_fill, fill_folder
from higgs_trainer.recipe.yaml_file import read_yaml
from higgs_trainer.run_folder import (
    AFTER,
    BEFORE,
    EVALUATION_FOLDER,
    REAL_VOICE_DECODED,
    RECIPE_FILE,
    RECORDINGS,
    name_clip,
)
from higgs_trainer.shared_paths import find_shared
from higgs_trainer.speech.generate import Request
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.speech.speech_model import SpeechModel, generate_into_folder, load_speech_model


@dataclass(frozen=True)
class EvaluationSettings:
    """The sentences of an evaluation, from a ``script`` or a ``prepared`` held-out set, and how models generate them.

    Attributes:
        language: the language of rows that name none. None: English.

    Example:
        ```python
        from pathlib import Path

        from higgs_trainer import EvaluationSettings

        settings = EvaluationSettings(prepared=Path("prepared/held_out"))
        ```
    """

    script: Sequence[Utterance] = ()
    prepared: Path | None = None
    voice: Voice = Voice()
    sampling: Sampling = Sampling()
    language: str | None = None
    codec: str | None = None
    dtype: str = AUTO
    device: str | None = None
    batch_size: int = 8

    def load_model(self, model: str) -> SpeechModel:
        """Load a model that generates with these settings."""
        return load_speech_model(
            model,
            codec=self.codec,
            voice=self.voice,
            sampling=self.sampling,
            language=self.language or DEFAULT_LANGUAGE,
            dtype=self.dtype,
            device=self.device,
        )

    def read_sentences(
        self, model: SpeechModel | None, codec: Codec | None = None
    ) -> list[EvaluationSentence]:
        """Read the sentences as requests to a model. Give None to evaluate recordings.

        Args:
            codec: decodes the recordings of a prepared dataset, if ``codec`` of the settings names none.
        """
        if self.prepared is None:
            build_request = self._build_plain_request if model is None else model.build_request
            return build_sentences(self.script, build_request, self.voice)
        if model is not None:
            return read_sentences(self.prepared, model.codec, language=self.language)
        if self.codec is None and codec is None:
            raise UserError(
                f"{self.prepared} holds codes. Name the codec that decodes them with --codec, or give a model too."
            )
        codec = codec if self.codec is None else load_codec(self.codec)
        assert codec is not None
        return read_sentences(self.prepared, codec, language=self.language)

    def list_languages(self) -> list[str | None]:
        """List the language that each row names. Nothing is loaded."""
        if self.prepared is None:
            return [line.language for line in self.script]
        return list(read_prepared(self.prepared).rows.column("language").to_pylist())

    def count_languages(self) -> Counter[str]:
        """Count the sentences in each language.

        Raises:
            UserError: some name no language, although others are not English (`check_languages_are_named`).
        """
        names = self.list_languages()
        check_languages_are_named(names, self.language, LANGUAGE_OPTION)
        return count_languages(names, self.language)

    def _build_plain_request(self, line: Utterance) -> Request:
        return Request(line.text, language=line.language or self.language or DEFAULT_LANGUAGE)


def evaluate_models(
    models: Sequence[str],
    settings: EvaluationSettings,
    judges: Judges,
    output: Path,
    *,
    other_voice: Sequence[Path] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate one model or two, and write an evaluation folder: clips, ``rows.jsonl`` and ``figures.json``.

    Args:
        models: adapter folders, models or hub names; or `RECORDINGS`, also as a third next to two models.
        output: a folder that does not exist or is empty. What an earlier evaluation left unfinished in it is renamed to
            ``NAME.unfinished-N``. Written to ``RUN/evaluation``, the evaluation belongs to the
            run: its model is shown as "after" and its base model as "before".
        other_voice: recordings of another person, to compare the voice with.

    Returns:
        The content of ``figures.json``.

    Raises:
        UserError: ``output`` is not empty or overlaps an input, a sentence cannot be judged, its language is not named
            or not known to the recogniser, or a model cannot be loaded.

    Example:
        ```python
        from pathlib import Path

        from higgs_trainer import EvaluationSettings, evaluate_models, load_judges

        report = evaluate_models(
            ["runs/voice"],
            EvaluationSettings(prepared=Path("prepared/held_out")),
            load_judges("whisper-tiny.en", with_quality=False),
            Path("runs/voice/evaluation"),
        )
        print(report["models"][0]["wer"])
        ```
    """
    check_output(models, settings, output, other_voice=other_voice)
    check_judges(judges, settings.count_languages())
    other_recordings = [read_audio(path) for path in other_voice]
    all_rows: dict[int, list[JudgedClip]] = {}
    figures: dict[int, ModelFigures] = {}
    codec: Codec | None = None
    with fill_folder(output):
        names = _name_sets(models, are_decoded=settings.prepared is not None)
        # Recordings come last, because the codec of a model may have to decode them.
        for number in sorted(range(len(models)), key=lambda number: models[number] == RECORDINGS):
            model = models[number]
            folder = output / f"{number + 1}-{Path(model).name}"
            rows, speed, codec = _judge_model(
                names[number], model, settings, judges, folder, other_recordings, codec
            )
            all_rows[number] = rows
            role = find_role(model, output)
            figures[number] = compute_figures(rows, speed=speed, role=role, seed=seed)
        compared = [number for number in sorted(all_rows) if len(models) < 3 or models[number] != RECORDINGS]
        pair = [all_rows[number] for number in compared]
        differences = compute_differences(*pair, seed=seed) if len(pair) == 2 else None
        report = build_report(
            [figures[number] for number in sorted(figures)],
            differences,
            recogniser=None if judges.recogniser is None else judges.recogniser.source.name,
            digits_spelled=judges.digits_spelled,
            seed=seed,
        )
        write_evaluation(output, report, [row for number in sorted(all_rows) for row in all_rows[number]])
    return report


def check_output(
    models: Sequence[str], settings: EvaluationSettings, output: Path, *, other_voice: Sequence[Path] = ()
) -> None:
    """Check, before anything is loaded, that the evaluation folder can be filled and overlaps no input.

    Raises:
        UserError: ``output`` is not empty, or it is, contains or lies in an input. ``RUN/evaluation`` is allowed.
    """
    inputs: list[Input] = []
    for model in models:
        if model != RECORDINGS:
            is_own = Path(output).resolve() == Path(model).resolve() / EVALUATION_FOLDER
            own, *others = list_inputs(model, settings.codec)
            inputs += [replace(own, may_contain_output=is_own), *others]
    if settings.prepared is not None:
        inputs.append(Input("the prepared dataset", settings.prepared))
    rows = [line.audio for line in settings.script if line.audio is not None]
    clips = [clip.audio for line in settings.script for clip in line.clips]
    files = [*rows, *clips, *(clip.audio for clip in settings.voice.references), *other_voice]
    check_apart("--output", output, [*inputs, *(Input("a recording", file) for file in files)])
    check_can_fill(output)


def _judge_model(
    name: str,
    model_name: str,
    settings: EvaluationSettings,
    judges: Judges,
    folder: Path,
    other_voice: Sequence[Tensor],
    codec: Codec | None,
) -> tuple[list[JudgedClip], float | None, Codec | None]:
    """Return one model's rows, its speed and its codec. The model is freed before the next one is loaded.

    Args:
        codec: that of another model, which may have to decode the recordings.
    """
    model = None if model_name == RECORDINGS else settings.load_model(model_name)
    sentences = settings.read_sentences(model, codec)
    if model is None:
        clips, speed = _write_recordings(sentences, folder), None
    else:
        if model.codec.sample_rate_hz != judges.sample_rate_hz:
            raise UserError(
                f"{model_name} generates at {model.codec.sample_rate_hz} Hz, but the judges need "
                f"{judges.sample_rate_hz} Hz"
            )
        clips, speed = generate_clips(model, sentences, folder, batch_size=settings.batch_size)
    voices = embed_voices(sentences, judges.encoder, judges.sample_rate_hz, other_voice=other_voice)
    rows = judge_clips_with_progress(name, sentences, clips, voices, judges)
    return rows, speed, codec if model is None else model.codec


def generate_clips(
    model: SpeechModel, sentences: Sequence[EvaluationSentence], folder: Path, *, batch_size: int = 8
) -> tuple[list[ClipToJudge], float]:
    """Generate a clip for each sentence. Return the clips and how many seconds of audio a second generates."""
    clips: dict[int, ClipToJudge] = {}
    done = generate_into_folder(
        model,
        [sentence.request for sentence in sentences],
        folder,
        batch_size=batch_size,
        on_clip=lambda number, clip, waveform_S: clips.update(
            {number: ClipToJudge(waveform_S, clip.stopped, str(folder / name_clip(number)))}
        ),
    )
    return [clips[number] for number in range(len(sentences))], done.audio_seconds / done.seconds


def _write_recordings(sentences: Sequence[EvaluationSentence], folder: Path) -> list[ClipToJudge]:
    """Write the recordings of the sentences where a model's clips would be, so that the report page can play them."""
    missing = [sentence.request.text for sentence in sentences if sentence.recording_S is None]
    if missing:
        raise UserError(
            f"{len(missing)} sentences have no recording, the first is {missing[0]!r}. Give each row of --text-file "
            "an 'audio', or use --data."
        )
    folder.mkdir()
    clips = []
    for number, sentence in enumerate(sentences):
        assert sentence.recording_S is not None
        write_audio(folder / name_clip(number), sentence.recording_S)
        clips.append(ClipToJudge(sentence.recording_S, True, str(folder / name_clip(number))))
    return clips


def find_role(model: str, output: Path) -> str | None:
    """Return "after" for the model of the run folder that ``output`` belongs to, "before" for its base model."""
    run = output.resolve().parent
    if output.name != EVALUATION_FOLDER or not (run / RECIPE_FILE).is_file():
        return None
    if Path(model).resolve() == run:
        return AFTER
    base = str((read_yaml(run / RECIPE_FILE).get("model") or {}).get("name_or_path") or "")
    base = str(find_shared(base, run) or base)
    return BEFORE if base and (model == base or Path(model).resolve() == Path(base).resolve()) else None


def _name_sets(models: Sequence[str], *, are_decoded: bool) -> list[str]:
    """Return the names of the sets of clips. A model that is given twice gets a number.

    Args:
        are_decoded: whether recordings are decoded from codes, which limits them as it limits a model.
    """
    names = []
    for i, model in enumerate(models):
        if model == RECORDINGS and are_decoded:
            names.append(REAL_VOICE_DECODED)
        elif models.count(model) == 1:
            names.append(model)
        else:
            names.append(f"{model} ({models[: i + 1].count(model)})")
    return names
