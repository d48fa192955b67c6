"""Generate the samples of a run while it trains, and list the recordings that they are compared with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import read_audio
from higgs_trainer.dataset.context import Context, PromptClip, read_context
from higgs_trainer.dataset.examples import Rows
from higgs_trainer.distributed import Processes, find_processes
from higgs_trainer.errors import RecipeError, UserError
from higgs_trainer.evaluation.held_out_scores import METRICS, HeldOutScores
from higgs_trainer.evaluation.judging import load_judges
from higgs_trainer.evaluation.languages import (
    DEFAULT_LANGUAGE,
    WITHOUT_SPACES,
    check_languages_are_named,
    count_languages,
    describe_unnamed_languages,
)
from higgs_trainer.evaluation.recogniser_source import RECIPE_WORDING, check_hears, find_recogniser
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.recipe.schema import SamplesRecipe
from higgs_trainer.run_folder import REFERENCE_KIND, SAMPLES_FOLDER
from higgs_trainer.speech.clip_folder import ClipFolder
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.real_recordings import ComparisonRecording, decode_row, find_rows
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.terminal import echo
from higgs_trainer.training.callbacks import GenerateSamples
from higgs_trainer.training.sample_reports import add_before_reporters, send_samples
from higgs_trainer.training.sharding import reshard
from higgs_trainer.training.trainer import HiggsAudioTrainer

LANGUAGE_FIELD = "samples.language"


@dataclass(frozen=True)
class Samples:
    """The samples that are generated before the first step, at each evaluation and after the last step.

    Args:
        section: the section ``samples`` of the recipe.
        checkpoint: the model that is being trained, and its tokenizer.
        codec: the codec of the model.
        held_out: the rows of ``data.eval``. Speech is generated for the first ``section.held_out`` of them.
        seed: the seed of the sampling. It is the same at every step, so that samples differ only by the training.
        folder: the folder of the samples, with a folder in it for each step.
        is_sharded: whether each process has a part of the model. Then all must generate, and the first one writes.
    """

    section: SamplesRecipe
    checkpoint: Checkpoint
    codec: Codec
    held_out: Rows | None
    seed: int
    folder: Path
    is_sharded: bool = False

    @cached_property
    def callback(self) -> GenerateSamples:
        """The callback that generates the samples during training."""
        return GenerateSamples(self.generate, self.folder, is_sharded=self.is_sharded)

    def add_to(self, trainer: HiggsAudioTrainer) -> None:
        """Let a trainer generate the samples, and send them to the tools of its ``report_to``."""
        handler = trainer.callback_handler
        self.callback.send = lambda folder, step: send_samples(handler.callbacks, folder, step)
        add_before_reporters(trainer, self.callback)

    def generate(self, folder: Path | None) -> None:
        """Generate the texts of the recipe, then the held-out sentences in their contexts, into ``folder``.

        None: only take part in it.
        """
        sampling = Sampling(
            greedy=self.section.greedy,
            temperature=self.section.temperature,
            top_k=self.section.top_k,
            top_p=self.section.top_p,
            max_seconds=self.section.max_seconds,
            seed=self.seed,
        )
        # Only the first process has the codec that encodes the reference.
        processes = find_processes() if self.is_sharded else Processes()
        requests = processes.share(self._build_requests)
        generated = generate_codes(self.checkpoint, requests, sampling=sampling, is_sharded=self.is_sharded)
        with nullcontext() if folder is None else ClipFolder(folder, self.codec) as clips:
            for number, clip in generated:
                if clips is not None:
                    clips.write(number, clip)
        if self.is_sharded:
            reshard(self.checkpoint.model)

    def _build_requests(self) -> list[Request]:
        references: tuple[PromptClip, ...] = ()
        language = self.section.language or DEFAULT_LANGUAGE
        if self.section.ref_audio is not None:
            codes_FK = self.codec.encode(read_audio(self.section.ref_audio))
            references = (PromptClip(self.section.ref_text, codes_FK),)
        return [
            *(
                Request(text, Context(references=references), language=language)
                for text in self.section.texts
            ),
            *(
                Request(row["text"], read_context(row), language=row["language"] or language)
                for row in self._read_held_out_rows()
            ),
        ]

    def list_recordings(self, train_rows: Rows) -> Iterator[ComparisonRecording]:
        """Yield the references of the samples, and the recordings of the same sentences in the data."""
        if self.section.ref_audio is not None:
            reference_S = read_audio(self.section.ref_audio)
            for text in self.section.texts:
                yield ComparisonRecording(text, REFERENCE_KIND, self.section.ref_text, reference_S)
        sets = [train_rows] if self.held_out is None else [self.held_out, train_rows]
        for row in find_rows(self.section.texts, sets):
            yield from decode_row(row, self.codec, with_references=False)
        for row in self._read_held_out_rows():
            yield from decode_row(row, self.codec, with_references=True)

    def _read_held_out_rows(self) -> Sequence[Mapping[str, Any]]:
        return [self.held_out[i] for i in range(self.section.held_out)] if self.held_out is not None else []


def speak_while_training(
    trainer: HiggsAudioTrainer,
    texts: Sequence[str],
    *,
    ref_audio: str | Path | None = None,
    ref_text: str | None = None,
    max_seconds: float = 10.0,
) -> None:
    """Let a trainer speak sentences before the first step, after each evaluation and after the last step.

    The clips are in ``samples/step-N`` of the output folder. If ``report_to`` names TensorBoard, Trackio or Weights &
    Biases, they can be heard there as well. All random states are restored, so the losses do not change. A recipe has
    the section ``samples`` for this.

    Args:
        ref_audio: a recording of the voice to imitate.
        ref_text: the words that are spoken in ``ref_audio``.
        max_seconds: the duration at which a clip is cut.

    Raises:
        UserError: the codec of the model is not known, or ``ref_audio`` cannot be read or has no words.
        ValidationError: ``max_seconds`` is out of its range.

    Example:
        ```python
        from higgs_trainer import HiggsAudioTrainer, speak_while_training
        from transformers import TrainingArguments

        arguments = TrainingArguments("runs/spoken", max_steps=2, use_cpu=True, report_to="tensorboard")
        trainer = HiggsAudioTrainer("base", arguments, train_dataset="prepared/train")
        speak_while_training(trainer, ["Eight three one five."], max_seconds=2)
        trainer.train()
        ```
    """
    built = trainer.built
    if built is None:
        raise UserError(f"models of the family {trainer.family.name} cannot generate speech here.")
    if (ref_audio is None) != (ref_text is None):
        raise UserError(
            "ref_audio and ref_text belong together: the recording of a voice and its words. Give both."
        )
    if ref_audio is not None:
        # Before training, so that a recording that cannot be read is found now.
        read_audio(ref_audio)
    section = SamplesRecipe(
        texts=tuple(texts),
        ref_audio=None if ref_audio is None else Path(ref_audio).absolute(),
        ref_text=ref_text,
        max_seconds=max_seconds,
    )
    checkpoint = replace(built.outline, model=trainer.accelerator.unwrap_model(trainer.model))
    folder = Path(trainer.args.output_dir, SAMPLES_FOLDER)
    Samples(section, checkpoint, built.codec, None, seed=trainer.args.seed, folder=folder).add_to(trainer)


def check_held_out(section: SamplesRecipe, num_held_out: int) -> None:
    """Raise RecipeError if more sentences of ``data.eval`` are to be spoken than there are."""
    if section.held_out > num_held_out:
        raise RecipeError(
            f"samples.held_out is {section.held_out}, but data.eval has {num_held_out} utterances. "
            "Lower samples.held_out, or add utterances to data.eval."
        )


def check_recogniser(section: SamplesRecipe, named: Sequence[str | None]) -> None:
    """Check, before anything is loaded, that the recogniser knows the languages of the sentences that are judged.

    Args:
        named: the language that the row of each such sentence names, or None.

    Raises:
        UserError: some sentences name no language although others are not English, the recogniser does not know a
            language, there is no such recogniser, or a package is not installed.
    """
    if section.judged and section.words:
        check_languages_are_named(named, section.language, LANGUAGE_FIELD)
        languages = count_languages(named, section.language)
        source = find_recogniser(section.recogniser, languages, stated=section.recogniser_languages)
        check_hears(source, languages, RECIPE_WORDING)


def list_spoken_metrics(section: SamplesRecipe, named: Sequence[str | None]) -> list[str]:
    """List the metrics that the judges log for sentences in these languages (`check_recogniser`)."""
    if not section.judged:
        return []
    left_out = set() if section.words else {"wer", "cer"}
    if set(count_languages(named, section.language)) & WITHOUT_SPACES:
        left_out.add("wer")
    return [name for name in METRICS if name not in left_out]


def load_scores(section: SamplesRecipe, held_out: Rows, codec: Codec) -> HeldOutScores:
    """Load the judges of the held-out sentences, and embed the voices of these sentences.

    Raises:
        UserError: a package of the judges is not installed, or the recogniser does not know a language.
    """
    rows = [held_out[i] for i in range(section.held_out)]
    names = [row["language"] for row in rows]
    if section.words and (note := describe_unnamed_languages(names, section.language, LANGUAGE_FIELD)):
        echo(note, to_stderr=True)
    judges = load_judges(
        section.recogniser,
        language=count_languages(names, section.language),
        recogniser_languages=section.recogniser_languages,
        with_words=section.words,
        with_quality=False,
    )
    return HeldOutScores(rows, codec, judges, language=section.language)
