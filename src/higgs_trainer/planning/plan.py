"""`higgs-trainer plan`: predict memory and time of a recipe, and find changes with which it fits."""

from dataclasses import dataclass
from typing import Any

from higgs_trainer.planning.changes import Variant, list_variants
from higgs_trainer.planning.dataset_shape import Work
from higgs_trainer.planning.duration import estimate_seconds
from higgs_trainer.planning.forecast import Forecast, Memory, vary
from higgs_trainer.planning.gpus import GPU
from higgs_trainer.planning.sharding import DDP, FSDP
from higgs_trainer.planning.step_counter import TRAINED
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.tensors import FRAMES_PER_SECOND

COMMON_GB = (12, 16, 24, 48, 80)
"""Sizes of GPUs for which a recipe is planned if none is named."""


@dataclass(frozen=True)
class Plan:
    """What `higgs-trainer plan` says about a recipe.

    Attributes:
        model: the folder or hub name of the model.
        is_prepared: whether the lengths are those of the recipe's data.
        trained, parameters: the number of trained parameters, and of all.
        memory: of one process at its peak.
        gpu: the GPU that was named. None: a CPU, or none was named.
        fits: whether the memory is enough. None: no GPU was named.
        step_seconds: the time of an optimizer step. None: the speed of the GPU is not known.
        tokens_per_second: of all GPUs together.
        hour_seconds: the time in which an hour of speech is trained once.
        steps_per_epoch: None if the data is not prepared.
        largest_packs: size of a GPU in GB -> the largest number of tokens a pack, or None if nothing fits.
        largest_pack_unchecked: the same for the named GPU without checkpointing, if the recipe has it.
        variants: changes of the recipe, until one that fits.
    """

    model: str
    work: Work
    is_prepared: bool
    trained: int
    parameters: int
    memory: Memory
    gpu: GPU | None
    num_gpus: int
    fits: bool | None
    step_seconds: float | None
    tokens_per_second: float | None
    hour_seconds: float | None
    steps_per_epoch: int | None
    largest_packs: dict[float, int | None]
    largest_pack_unchecked: int | None
    variants: tuple[Variant, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, with memory in GB (10^9 bytes)."""
        return {
            "model": self.model,
            "gpu": self.gpu and self.gpu.name,
            "gpus": self.num_gpus,
            "strategy": self.memory.strategy,
            "tokens_per_batch": self.work.shape.tokens,
            "data_is_prepared": self.is_prepared,
            "trained_parameters": self.trained,
            "parameters": self.parameters,
            "peak_gb": _to_gb(self.memory.total),
            "parts_gb": {part: _to_gb(number) for part, number in self.memory.parts.items()},
            "peak_in": self.memory.region,
            "fits": self.fits,
            "step_seconds": _round(self.step_seconds),
            "tokens_per_second": _round(self.tokens_per_second),
            "steps_per_epoch": self.steps_per_epoch,
            "largest_pack": {f"{size:g}": tokens for size, tokens in self.largest_packs.items()},
            "changes": [
                {
                    "name": variant.name,
                    "fields": {section: dict(fields) for section, fields in variant.fields.items()},
                    "gpus": variant.num_gpus,
                    "tokens_per_pack": variant.tokens,
                    "peak_gb": _to_gb(variant.total_bytes),
                }
                for variant in self.variants
            ],
            "measured": False,
        }


def plan_run(recipe: Recipe, *, gpu: GPU | None = None, num_gpus: int = 1) -> Plan:
    """Predict memory and time of a recipe. No weight is read.

    Args:
        gpu: the GPU to train on. None: no particular one or, with ``training.use_cpu``, this CPU.

    Raises:
        UserError: the configuration or the tokenizer of the model cannot be had, or a recipe's field does not fit them.
    """
    forecast = Forecast(recipe, on_cpu=recipe.training.use_cpu and gpu is None)
    tokens = forecast.work.shape.tokens
    counts = forecast.count(forecast.recipe, tokens)
    limit_bytes = gpu.memory_gb * 1e9 if gpu else None
    memory = _choose_memory(forecast, tokens, num_gpus, limit_bytes)
    fits = None if limit_bytes is None else memory.total <= limit_bytes
    largest, unchecked, variants = _search(forecast, memory, gpu, num_gpus, fits)
    accumulation = recipe.training.gradient_accumulation_steps
    batch_seconds = estimate_seconds(counts, gpu) if gpu else None
    rate = num_gpus * tokens * forecast.work.fill / batch_seconds if batch_seconds else None
    batches = forecast.work.batches_per_epoch
    return Plan(
        model=recipe.model.name_or_path,
        work=forecast.work,
        is_prepared=batches is not None,
        trained=round(max(parts[TRAINED] for parts in counts.peaks.values()) / 4),
        parameters=round(counts.other_values + counts.layer_values * forecast.num_layers),
        memory=memory,
        gpu=gpu,
        num_gpus=num_gpus,
        fits=fits,
        step_seconds=batch_seconds * accumulation if batch_seconds else None,
        tokens_per_second=rate,
        hour_seconds=_count_tokens_per_hour(forecast) / rate if rate else None,
        steps_per_epoch=None if batches is None else max(1, round(batches / num_gpus / accumulation)),
        largest_packs=largest,
        largest_pack_unchecked=unchecked,
        variants=variants,
    )


def _choose_memory(forecast: Forecast, tokens: int, num_gpus: int, limit_bytes: float | None) -> Memory:
    """Return the memory of the recipe: with an adapter by DDP if that fits, which is faster, else by FSDP2."""
    if forecast.on_cpu:
        return forecast.compute_process_memory()
    if num_gpus > 1 and forecast.recipe.adapter is not None:
        memory = forecast.compute_memory(forecast.recipe, tokens, num_gpus, DDP)
        if limit_bytes is None or memory.total <= limit_bytes:
            return memory
    return forecast.compute_memory(forecast.recipe, tokens, num_gpus, FSDP)


def _search(
    forecast: Forecast, memory: Memory, gpu: GPU | None, num_gpus: int, fits: bool | None
) -> tuple[dict[float, int | None], int | None, tuple[Variant, ...]]:
    """Find the largest packs and, if the recipe does not fit, the changes up to the first that does."""
    recipe = forecast.recipe
    if forecast.on_cpu or not forecast.work.shape.is_packed:
        return {}, None, ()
    sizes = COMMON_GB if gpu is None else (gpu.memory_gb,)
    strategy = memory.strategy or FSDP
    largest = {size: forecast.find_largest_batch(recipe, size * 1e9, num_gpus, strategy) for size in sizes}
    unchecked = None
    if gpu is not None and fits and recipe.training.gradient_checkpointing:
        without = vary(recipe, "training", gradient_checkpointing=False)
        unchecked = forecast.find_largest_batch(without, gpu.memory_gb * 1e9, num_gpus, strategy)
    variants = []
    if gpu is not None and not fits:
        for variant in list_variants(forecast, gpu.memory_gb * 1e9, num_gpus):
            variants.append(variant)
            if variant.total_bytes <= gpu.memory_gb * 1e9:
                break
    return largest, unchecked, tuple(variants)


def _count_tokens_per_hour(forecast: Forecast) -> float:
    """Return how many tokens an hour of speech has, with its text."""
    shape = forecast.work.shape
    # The delay makes a clip of F frames F + K columns long.
    seconds = max(1, shape.columns - forecast.outline.stream_ids.num_codebooks) / FRAMES_PER_SECOND
    return 3600 * shape.example_tokens / seconds


def _to_gb(number: float) -> float:
    return round(number / 1e9, 3)


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
