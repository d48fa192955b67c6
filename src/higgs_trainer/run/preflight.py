"""Build everything of a run that needs no weights of the model, and find every mistake that can be found without them.

A model of 6 GB takes minutes to download and to load. A misspelt folder, a missing package or a clip that fits into no
pack is reported before that, and mistakes that do not depend on each other are reported together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from transformers import TrainingArguments

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import read_audio
from higgs_trainer.audio.lazy_codec import open_codec
from higgs_trainer.dataset.packing import PlannedExamples
from higgs_trainer.dataset.prepared import (
    HELD_OUT_NAME,
    TRAIN_NAME,
    PreparedDataset,
    check_codec,
    read_prepared,
)
from higgs_trainer.errors import CheckpointError, RecipeError, UserError, suggest_name
from higgs_trainer.evaluation.held_out_scores import HeldOutScores
from higgs_trainer.hub_names import find_similar
from higgs_trainer.model.loading import load_codec_of, load_outline
from higgs_trainer.model.quantization import check_quantization
from higgs_trainer.recipe.arguments import build_training_arguments
from higgs_trainer.recipe.new_recipe import HELD_OUT
from higgs_trainer.recipe.schema import AdapterRecipe, LossRecipe, Recipe, WeightedFolder
from higgs_trainer.run.arguments import build_arguments, check_optimizer, check_schedule
from higgs_trainer.run.disk_space import check_disk_space, estimate_sizes
from higgs_trainer.run.launch import check_sharding
from higgs_trainer.run.samples import check_held_out, check_recogniser, list_spoken_metrics, load_scores
from higgs_trainer.run.trainable import choose_trainable
from higgs_trainer.terminal import echo, format_command
from higgs_trainer.training.datasets import LoadedSets, load_sets, plan_training
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.metrics import list_held_out_metrics
from higgs_trainer.training.trainer_inputs import check_packing

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Preflight:
    """What a run has before the weights of its model are loaded.

    Attributes:
        plan: the training set in the order of its plan.
        scores: the judges of the generated held-out sentences. None if nothing is judged in this process.
    """

    arguments: TrainingArguments
    codec: Codec
    weights: LossWeights
    train_set: LoadedSets
    held_out: LoadedSets | None
    plan: PlannedExamples
    scores: HeldOutScores | None


@dataclass
class _Attempts:
    """Call functions that do not depend on each other, and collect the mistakes that they find."""

    found: list[UserError] = field(default_factory=list)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what the function returns, or None if it finds a mistake."""
        try:
            return function(*args, **kwargs)
        except UserError as error:
            self.found.append(error)
            return None

    def raise_found(self) -> None:
        """Raise the mistake, or all of them as one error."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            listed = "".join(f"\n  {error}" for error in self.found)
            raise RecipeError(f"{len(self.found)} mistakes were found before the model was loaded:{listed}")


def run_preflight(recipe: Recipe, *, builds_optimizer: bool = False) -> Preflight:
    """Build what needs no weights, and check the rest of the recipe as far as it needs none.

    Args:
        builds_optimizer: whether the caller builds the optimizer, so that ``training.optim`` has no effect.

    Raises:
        UserError: lists every mistake that was found.
    """
    attempts, data, samples = _Attempts(), recipe.data, recipe.samples
    arguments = attempts.call(build_arguments, build_training_arguments(recipe))
    train_sets, held_out_sets = _open_sets(attempts, recipe)
    languages = list(islice(_list_languages(held_out_sets), samples.held_out))
    attempts.call(check_recogniser, samples, languages)
    if None not in held_out_sets:
        rows = sum(prepared.card.utterances for prepared in held_out_sets if prepared is not None)
        attempts.call(check_held_out, samples, rows)
    if samples.ref_audio is not None:
        attempts.call(read_audio, samples.ref_audio)

    codec = chosen = None
    attempts.call(check_quantization, recipe.model.quantization)
    outline = attempts.call(
        load_outline, recipe.model.name_or_path, attn_implementation=recipe.model.attn_implementation
    )
    if outline is not None:
        codec = attempts.call(load_codec_of, outline, recipe.model.codec, is_lazy=True)
        num_codebooks = outline.stream_ids.num_codebooks
        attempts.call(build_weights, recipe.loss, num_codebooks)
        attempts.call(check_packing, outline.family, packing=data.packing)
        metric = recipe.training.metric_for_best_model
        attempts.call(check_best_metric, metric, num_codebooks, list_spoken_metrics(samples, languages))
        chosen = attempts.call(
            choose_trainable, outline, without_weights(recipe.adapter), recipe.model.freeze
        )
    elif recipe.model.codec is not None:
        codec = attempts.call(open_codec, recipe.model.codec)
    if codec is not None:
        attempts.call(_check_codecs, [*train_sets, *held_out_sets], codec)
    if arguments is not None:
        attempts.call(check_sharding, recipe.training, arguments, builds_optimizer=builds_optimizer)
        attempts.call(check_schedule, arguments)
        if not builds_optimizer:
            attempts.call(check_optimizer, arguments, None if outline is None else outline.model)
    attempts.raise_found()
    assert arguments is not None
    assert outline is not None
    assert codec is not None
    assert chosen is not None

    train_set = load_sets(list(filter(None, train_sets)), outline, codec)
    held_out = load_sets(list(filter(None, held_out_sets)), outline, codec) if held_out_sets else None
    plan = plan_training(
        train_set,
        arguments,
        num_codes=outline.num_codes,
        weights=[train.weight for train in data.train],
        tokens_per_pack=data.tokens_per_pack if data.packing else None,
        code_noise=data.code_noise,
    )
    if recipe.training.save_strategy != "no" and arguments.process_index == 0:
        sizes = estimate_sizes(recipe, arguments, chosen.model, len(plan))
        if (line := check_disk_space(recipe, sizes)) is not None:
            echo(line)
    scores = None
    if samples.judged and held_out is not None and arguments.process_index == 0:
        scores = load_scores(samples, held_out.rows, codec)
    weights = build_weights(recipe.loss, outline.stream_ids.num_codebooks)
    return Preflight(arguments, codec, weights, train_set, held_out, plan, scores)


def _open_sets(
    attempts: _Attempts, recipe: Recipe
) -> tuple[list[PreparedDataset | None], list[PreparedDataset | None]]:
    """Open the datasets to train on and those to evaluate on. One that cannot be used is None."""
    data, model = recipe.data, recipe.model
    options = ["--codec", model.codec] if model.codec else ["--model", model.name_or_path]
    both = [one.path for one in (*data.train, *data.eval)]
    parent = both[0].parent
    if both == [parent / TRAIN_NAME, parent / HELD_OUT_NAME] and not any(map(Path.exists, both)):
        # One command makes both, as `higgs-trainer init` says.
        command = format_command(
            "higgs-trainer", "prepare", "DATA", "-o", parent, "--held-out", HELD_OUT, *options
        )
        error = CheckpointError(
            f"data.train and data.eval: there are no folders {both[0]} and {both[1]}. Make them from your recordings "
            f"and texts, DATA:\n{command}"
        )
        attempts.found.append(error)
        return [None], [None]
    return (
        [attempts.call(_open_set, "data.train", one, options) for one in data.train],
        [attempts.call(_open_set, "data.eval", one, options) for one in data.eval],
    )


def _open_set(field: str, folder: WeightedFolder, options: Sequence[str]) -> PreparedDataset:
    """Open a prepared dataset.

    Args:
        options: what chooses the codec in a ``prepare`` that would make it.

    Raises:
        CheckpointError: it is no prepared dataset; the message names the field of the recipe.
    """
    if not folder.path.is_dir():
        near = find_similar(folder.path)
        command = format_command("higgs-trainer", "prepare", "DATA", "-o", folder.path, *options)
        remedy = (
            f"Did you mean {near}?" if near else f"Make it from your recordings and texts, DATA:\n{command}"
        )
        raise CheckpointError(f"{field}: there is no folder {folder.path}. {remedy}")
    return read_prepared(folder.path)


def _list_languages(datasets: Sequence[PreparedDataset | None]) -> Iterator[str | None]:
    """Yield the language that each row names."""
    for dataset in filter(None, datasets):
        yield from dataset.rows.column("language").to_pylist()


def _check_codecs(datasets: Sequence[PreparedDataset | None], codec: Codec) -> None:
    """Raise CheckpointError if another codec made the codes of a dataset. The first such dataset is named."""
    for dataset in datasets:
        if dataset is not None:
            check_codec(dataset.card, codec)


def without_weights(adapter: AdapterRecipe | None) -> AdapterRecipe | None:
    """Return the adapter with initial values that can be made without the weights of the model."""
    return None if adapter is None else adapter.model_copy(update={"init_lora_weights": True})


def build_weights(loss: LossRecipe, num_codebooks: int) -> LossWeights:
    """Build the weights of the loss.

    Raises:
        RecipeError: there are more or fewer weights than codebooks.
    """
    weights = LossWeights(audio=loss.audio_weight, codebooks=loss.codebook_weights)
    try:
        weights.list_codebook_weights(num_codebooks)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return weights


def check_best_metric(best: str | None, num_codebooks: int, spoken: Sequence[str] = ()) -> None:
    """Raise RecipeError if the metric that chooses the best checkpoint is never logged.

    Trainer itself would fail only at the first evaluation.

    Args:
        spoken: the metrics of the judges (`list_spoken_metrics`).
    """
    known = [*list_held_out_metrics(num_codebooks), *(f"eval_{name}" for name in spoken)]
    if best is not None and f"eval_{best.removeprefix('eval_')}" not in known:
        raise RecipeError(
            f"training.metric_for_best_model: {best!r} is never logged. {suggest_name(best, known)}"
        )
