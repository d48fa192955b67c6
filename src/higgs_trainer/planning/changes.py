"""Changes of a recipe with which it needs less memory, in the order of what they cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from higgs_trainer.planning.forecast import Forecast, vary
from higgs_trainer.planning.sharding import FSDP
from higgs_trainer.planning.step_counter import OPTIMIZER
from higgs_trainer.recipe.schema import Recipe

SMALLEST_PACK = 1024
"""Smaller packs are not proposed: a step then works on few examples."""
NUMBERS_OF_GPUS = (2, 4, 8, 16, 32)
WORTH_BYTES = 0.5e9
"""An 8-bit optimizer is proposed if it saves at least this."""


@dataclass(frozen=True)
class Variant:
    """A recipe with changes.

    Attributes:
        name: what is changed, in a few words.
        fields: the fields to change, by section.
        tokens: of a pack.
        num_gpus: that share the model by FSDP2.
        total_bytes: the memory of one GPU at its peak.
    """

    name: str
    fields: Mapping[str, Mapping[str, Any]]
    tokens: int
    num_gpus: int
    total_bytes: float

    @property
    def lines(self) -> list[str]:
        """The lines of the recipe to change."""
        return [
            line
            for section, fields in self.fields.items()
            for line in (f"{section}:", *(f"  {name}: {_write(value)}" for name, value in fields.items()))
        ]


def list_variants(forecast: Forecast, limit_bytes: float, num_gpus: int = 1) -> Iterator[Variant]:
    """Yield variants of a recipe, the cheapest first. Each includes the changes before it, but for smaller packs.

    Where the packs of the recipe do not fit, the variant has the largest that do, down to `SMALLEST_PACK`.
    """
    recipe = forecast.recipe
    yield _shrink_packs(forecast, "smaller packs", recipe, {}, limit_bytes, num_gpus)
    changes: dict[str, dict[str, Any]] = {}
    for name, section, field, value in _list_changes(forecast, recipe):
        recipe = vary(recipe, section, **{field: value})
        changes = changes | {section: changes.get(section, {}) | {field: value}}
        yield _shrink_packs(forecast, name, recipe, changes, limit_bytes, num_gpus)
    recipe = vary(forecast.recipe, "training", gradient_checkpointing=True)
    fields = (
        {}
        if forecast.recipe.training.gradient_checkpointing
        else {"training": {"gradient_checkpointing": True}}
    )
    for number in NUMBERS_OF_GPUS:
        if number > num_gpus:
            variant = _shrink_packs(forecast, f"{number} GPUs by {FSDP}", recipe, fields, limit_bytes, number)
            if variant.total_bytes <= limit_bytes or number == NUMBERS_OF_GPUS[-1]:
                yield variant
                return


def _list_changes(forecast: Forecast, recipe: Recipe) -> Iterator[tuple[str, str, str, Any]]:
    """Yield name, section, field and value of each change that the recipe does not have yet."""
    if not recipe.training.gradient_checkpointing:
        yield "checkpointing", "training", "gradient_checkpointing", True
    counts = forecast.count(recipe, forecast.work.shape.tokens)
    state_bytes = max(parts[OPTIMIZER] for parts in counts.peaks.values())
    if state_bytes - counts.state_bytes_8bit > WORTH_BYTES:
        yield "8-bit optimizer", "training", "optim", "adamw_8bit"
    if recipe.adapter is None:
        frozen = [kind for kind in ("text_ffn", "text_embeddings") if kind not in recipe.model.freeze]
        kinds = forecast.outline.family.module_kinds
        if frozen and all(kind in kinds for kind in frozen):
            yield "text side frozen", "model", "freeze", (*recipe.model.freeze, *frozen)
    elif recipe.model.quantization is None:
        yield "4-bit base (QLoRA)", "model", "quantization", "nf4"


def _shrink_packs(
    forecast: Forecast,
    name: str,
    recipe: Recipe,
    fields: Mapping[str, Mapping[str, Any]],
    limit_bytes: float,
    num_gpus: int,
) -> Variant:
    """Return the variant with the packs of the recipe or, if they do not fit, with the largest that do."""
    tokens = forecast.work.shape.tokens
    total_bytes = forecast.compute_memory(recipe, tokens, num_gpus).total
    if total_bytes > limit_bytes and forecast.work.shape.is_packed:
        smallest = max(SMALLEST_PACK, forecast.work.longest)
        largest = forecast.find_largest_batch(recipe, limit_bytes, num_gpus) or 0
        tokens = min(tokens, max(smallest, largest))
        total_bytes = forecast.compute_memory(recipe, tokens, num_gpus).total
        if tokens < forecast.work.shape.tokens:
            fields = {"data": {"tokens_per_pack": tokens}} | dict(fields)
    return Variant(name, fields, tokens, num_gpus, total_bytes)


def _write(value: Any) -> str:
    """Write a value as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple | list) else str(value)
