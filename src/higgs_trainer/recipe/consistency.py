"""Find fields of a recipe that are valid on their own but contradict each other."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from higgs_trainer.manifest.text import find_prompt_problem, is_speakable
from higgs_trainer.recipe.problems import Place

if TYPE_CHECKING:
    from higgs_trainer.recipe.schema import DataRecipe, Recipe, SamplesRecipe

ERROR_RATES = ("wer", "cer")
"""Metrics of which a smaller value is better. Trainer assumes this only for names that end in "loss"."""

DECOMPOSITIONS = ("olora", "pissa")
"""Initial values of LoRA that take a part of the base's weights out of them."""

Contradiction = tuple[Place, str, str]
"""The place, the problem, and the remedy."""


def list_contradictions(recipe: "Recipe") -> Iterator[Contradiction]:
    """Yield every pair of fields that cannot be used together."""
    yield from _check_data(recipe.data)
    yield from _check_batches(recipe)
    yield from _check_evaluation(recipe)
    yield from _check_samples(recipe)
    yield from _check_quantization(recipe)
    if recipe.model.freeze and recipe.adapter is not None:
        yield (
            ("model", "freeze"),
            "has no effect with an adapter, which freezes the whole model",
            "Leave out model.freeze or adapter.",
        )


def _check_quantization(recipe: "Recipe") -> Iterator[Contradiction]:
    place, adapter = ("model", "quantization"), recipe.adapter
    if recipe.model.quantization is None:
        return
    if adapter is None:
        yield place, "needs an adapter: weights of 4 bits cannot be trained", "Add the section adapter."
    elif adapter.init_lora_weights in DECOMPOSITIONS:
        yield (
            ("adapter", "init_lora_weights"),
            f"is {adapter.init_lora_weights}, which changes the base and cannot change weights of 4 bits",
            "Leave it out.",
        )
    if "fsdp" in recipe.training.extra_arguments:
        yield place, "was never run with sharded weights", "Leave out training.fsdp."


def _check_data(data: "DataRecipe") -> Iterator[Contradiction]:
    if not data.train:
        yield ("data", "train"), "is empty", "Name a prepared folder."
    for name, folders in (("train", data.train), ("eval", data.eval)):
        # Another spelling of a path, such as a link, is the same folder.
        for path, times in Counter(os.path.realpath(folder.path) for folder in folders).items():
            if times > 1:
                yield ("data", name), f"names {path} {times} times", "Name it once, with a weight."
    if any(folder.weight != 1 for folder in data.eval):
        yield (
            ("data", "eval"),
            "has a weight, but the validation loss is computed over all cells of all folders",
            "Leave the weights out.",
        )


def _check_batches(recipe: "Recipe") -> Iterator[Contradiction]:
    training = recipe.training
    if recipe.data.packing and training.per_device_train_batch_size not in (None, 1):
        yield (
            ("training", "per_device_train_batch_size"),
            f"is {training.per_device_train_batch_size}, but with data.packing a batch is one pack",
            "Set data.tokens_per_pack instead, or data.packing: false.",
        )
    if training.max_steps == 0 or training.max_steps < -1:
        yield (
            ("training", "max_steps"),
            f"is {training.max_steps}, which transformers reads as not set",
            "Write the number of steps, or -1 to train for num_train_epochs.",
        )
    if training.bf16 and training.fp16:
        yield ("training", "fp16"), "excludes training.bf16", "Keep one of them."
    new_name = training.extra_arguments.get("activation_checkpointing")
    if new_name is not None and training.gradient_checkpointing:
        yield (
            ("training", "activation_checkpointing"),
            "is the new name of gradient_checkpointing",
            "Keep one of them.",
        )


def _check_evaluation(recipe: "Recipe") -> Iterator[Contradiction]:
    training = recipe.training
    metric, evaluates = training.metric_for_best_model, training.eval_strategy != "no"
    if evaluates and not recipe.data.eval:
        yield ("training", "eval_strategy"), "needs data.eval", "Name a prepared folder there."
    if training.extra_arguments.get("eval_on_start") and not recipe.data.eval:
        yield ("training", "eval_on_start"), "needs data.eval", "Name a prepared folder there."
    if training.load_best_model_at_end and not evaluates:
        yield ("training", "load_best_model_at_end"), "needs evaluations", "Set training.eval_strategy."
    if metric is not None and not evaluates:
        yield (
            ("training", "metric_for_best_model"),
            "is measured in evaluations, and there are none",
            "Set training.eval_strategy.",
        )
    if training.save_strategy == "best" and metric is None:
        yield (
            ("training", "save_strategy"),
            "is best, but no metric decides which checkpoint is best",
            "Set training.metric_for_best_model.",
        )
    if recipe.early_stopping is not None and metric is None:
        yield ("early_stopping",), "needs a metric", "Set training.metric_for_best_model."
    if training.greater_is_better and (metric or "").endswith(ERROR_RATES):
        yield (
            ("training", "greater_is_better"),
            f"is true, but a smaller {metric} is better",
            "Leave it out.",
        )


def _check_sampling(samples: "SamplesRecipe") -> Iterator[Contradiction]:
    if samples.greedy:
        for name in ("temperature", "top_k", "top_p"):
            if getattr(samples, name) is not None:
                yield (
                    ("samples", name),
                    "has no effect, because samples.greedy is true",
                    "Leave out one of them.",
                )


def _check_samples(recipe: "Recipe") -> Iterator[Contradiction]:
    samples = recipe.samples
    if samples.judged and not samples.held_out:
        yield ("samples", "judged"), "has nothing to judge", "Set samples.held_out to a number of sentences."
    if (samples.recogniser or samples.recogniser_languages) and not (samples.judged and samples.words):
        yield (
            ("samples", "recogniser" if samples.recogniser else "recogniser_languages"),
            "has no effect, because no words are judged",
            "Leave it out, or set samples.judged and samples.words to true.",
        )
    if not samples.words and not samples.judged:
        yield ("samples", "words"), "has no effect, because nothing is judged", "Leave it out."
    yield from _check_sampling(samples)
    if samples.held_out and not recipe.data.eval:
        yield ("samples", "held_out"), "needs data.eval", "Name a prepared folder there."
    texts: list[tuple[Place, str]] = [
        (("samples", "texts", number), text) for number, text in enumerate(samples.texts)
    ]
    if samples.ref_text is not None:
        texts.append((("samples", "ref_text"), samples.ref_text))
    for place, text in texts:
        if problem := find_prompt_problem(text):
            yield place, *problem
        elif not is_speakable(text):
            yield place, "contains no word", "Write what is said, or a tag such as [laugh]."
    if (samples.ref_audio is None) != (samples.ref_text is None):
        given = "ref_audio" if samples.ref_text is None else "ref_text"
        yield (
            ("samples", given),
            "is half of a reference: samples.ref_audio is a recording and samples.ref_text its words",
            "Give both or neither.",
        )
