"""Predict memory and time of a recipe and of variants of it, before any weight is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from higgs_trainer.errors import UserError
from higgs_trainer.model.loaded_dtype import choose_dtype
from higgs_trainer.model.loading import TEXT_HEAD, Checkpoint, load_outline
from higgs_trainer.model.model_folder import find_codec
from higgs_trainer.model.weight_files import find_weight_files, read_headers
from higgs_trainer.planning.dataset_shape import Work, measure_work
from higgs_trainer.planning.fake_step import FakeRun, count_step, list_allocations
from higgs_trainer.planning.heap import count_most_live, measure_heap
from higgs_trainer.planning.layer_scaling import ScalableCounts, count_scalable
from higgs_trainer.planning.sharding import DDP, FSDP, replicate, shard
from higgs_trainer.planning.start_memory import measure_start
from higgs_trainer.planning.step_counter import KERNEL_BYTES, MOST_KERNELS, OPTIMIZER, PARTS, StepCounts
from higgs_trainer.recipe.arguments import build_training_arguments
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run.arguments import build_arguments
from higgs_trainer.run.trainable import resolve_dtype

CODEC = "codec"
CONTEXT = "CUDA context"
LIBRARIES = "Python, libraries and data"
GAPS = "gaps in the heap"
KERNELS = "kernels of oneDNN"
LOADING = "left from loading"

LOADING_BYTES = 30e6
"""What transformers keeps after it has loaded a model. Measured with another model than those of benchmarks/plan.py."""

COUNTED_STEPS = 3
"""The heap is larger in later steps, because the state of the optimizer is between what the first step freed."""

CONTEXT_BYTES = 0.6e9
"""CUDA, its kernels and the workspaces of cuBLAS. Assumed."""
RELEASED_CODEC_BYTES = 0.81e9
"""The weights of the released codec in float32."""

NOT_PLANNED = (
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
)
"""Arguments that need a GPU or a launcher, and so cannot be built here."""


@dataclass(frozen=True)
class Memory:
    """Predicted memory of one process at its peak.

    Attributes:
        parts: what it is for -> bytes.
        region: where in the step the peak is.
        strategy: how several GPUs share the work. None: there is one.
    """

    parts: dict[str, float]
    region: str
    strategy: str | None = None

    @property
    def total(self) -> float:
        """All parts together (bytes)."""
        return sum(self.parts.values())


class Forecast:
    """Predicts for one recipe, of which the model and the data are known, and for variants of it.

    Attributes:
        recipe: with a dtype that is not "auto".
        work: what the data of the recipe asks for.
        on_cpu: whether to predict for this CPU, and not for a GPU.
    """

    def __init__(self, recipe: Recipe, *, on_cpu: bool = False) -> None:
        self._as_given = recipe
        self.recipe = resolve_dtype(recipe)
        self.on_cpu = on_cpu
        model = self.recipe.model
        self.outline = load_outline(
            model.name_or_path,
            attn_implementation=choose_attention(model.attn_implementation),
            compares_weights=False,
        )
        self.arguments = build_planned_arguments(self.recipe)
        self.work: Work = measure_work(recipe.data, self.outline, self.arguments)
        self._counted: dict[str, ScalableCounts] = {}

    @property
    def num_layers(self) -> int:
        """The number of decoder layers of the model."""
        return int(self.outline.model.config.get_text_config().num_hidden_layers)

    @property
    def num_batches(self) -> int:
        """The number of batches that the run trains on, or a large number if its data is not prepared."""
        training = self.recipe.training
        if training.max_steps > 0:
            return training.max_steps * training.gradient_accumulation_steps
        return round(training.num_train_epochs * (self.work.batches_per_epoch or MOST_KERNELS)) or 1

    def count(self, recipe: Recipe, tokens: int) -> StepCounts:
        """Count a batch of so many tokens with a variant of the recipe."""
        data = recipe.data.model_copy(update={"tokens_per_pack": 1})
        optim = recipe.training.optim
        as_counted = recipe.training.model_copy(
            update={"optim": "adamw_torch_fused" if is_8bit(optim) else optim}
        )
        alike = recipe.model_copy(update={"data": data, "training": as_counted})
        key = alike.model_dump_json()
        if key not in self._counted:
            self._counted[key] = count_scalable(self._build_run(alike), self.work.shape)
        counts = self._counted[key].at(tokens)
        if is_8bit(optim):
            for parts in counts.peaks.values():
                parts[OPTIMIZER] = counts.state_bytes_8bit
        return counts

    def compute_memory(self, recipe: Recipe, tokens: int, num_gpus: int = 1, strategy: str = FSDP) -> Memory:
        """Return the peak of one process that trains with a variant of the recipe.

        Args:
            strategy: how several GPUs share the work.
        """
        counts = self.count(recipe, tokens)
        peaks = counts.peaks
        if num_gpus > 1 and strategy == DDP:
            peaks = {region: replicate(parts) for region, parts in peaks.items()}
        elif num_gpus > 1:
            value_bytes = 2 if recipe.training.bf16 or recipe.model.dtype != "float32" else 4
            peaks = {
                region: shard(counts, parts, num_gpus, value_bytes=value_bytes)
                for region, parts in peaks.items()
            }
        region = max(peaks, key=lambda name: sum(peaks[name].values()))
        parts = {part: peaks[region].get(part, 0.0) for part in PARTS}
        parts |= {CODEC: self._count_codec(), CONTEXT: CONTEXT_BYTES}
        return Memory(parts, region, strategy if num_gpus > 1 else None)

    def compute_process_memory(self) -> Memory:
        """Return the peak of a process that trains on this CPU. The whole model is counted, which takes a minute.

        The C library's gaps are those that it has after the same allocations (`heap.py`).
        """
        recipe, shape = self.recipe, self.work.shape
        run = self._build_run(recipe)
        counts = count_step(run, shape, run.num_layers)
        stored = choose_dtype(recipe.model.name_or_path)
        # Packs are not equally long, and each length has kernels of its own.
        shapes = [
            shape.resize(shape.tokens - number) for number in range(min(COUNTED_STEPS, self.num_batches))
        ]
        events, num_kernels = list_allocations(run, shapes, stored_dtype=stored)
        kernels = min(MOST_KERNELS, num_kernels * self.num_batches // len(shapes))
        region = max(counts.peaks, key=lambda name: sum(counts.peaks[name].values()))
        parts = {part: counts.peaks[region].get(part, 0.0) for part in PARTS}
        parts[KERNELS] = float(kernels * KERNEL_BYTES)
        if (taken := measure_heap(events)) is not None:
            parts[GAPS] = max(0.0, taken - count_most_live(events))
        parts[LOADING] = LOADING_BYTES
        parts[LIBRARIES] = float(measure_start(self._as_given))
        return Memory(parts, region)

    def find_largest_batch(
        self, recipe: Recipe, limit_bytes: float, num_gpus: int = 1, strategy: str = FSDP
    ) -> int | None:
        """Return the largest number of tokens a pack that fits, rounded down. None: not even one example fits."""
        low, high = self.work.longest, MOST_TOKENS
        if self.compute_memory(recipe, low, num_gpus, strategy).total > limit_bytes:
            return None
        while high - low > 16:
            middle = (low + high) // 2
            fits = self.compute_memory(recipe, middle, num_gpus, strategy).total <= limit_bytes
            low, high = (middle, high) if fits else (low, middle)
        return max(self.work.longest, round_down(low))

    def _build_run(self, recipe: Recipe) -> FakeRun:
        keeps_head = recipe.adapter is None and has_text_head(self.outline)
        return FakeRun(recipe, self.outline, build_planned_arguments(recipe), keeps_head, self.on_cpu)

    def _count_codec(self) -> float:
        """Return the bytes of the weights of the codec, which the main process holds."""
        try:
            name = self.recipe.model.codec or find_codec(self.recipe.model.name_or_path)
            files = find_weight_files(Path(name)) if Path(name).is_dir() else []
        except UserError:
            return RELEASED_CODEC_BYTES
        if Path(name).is_dir():
            return float(sum(file.stat().st_size for file in files))
        return 0.0 if name == "embedded" else RELEASED_CODEC_BYTES


MOST_TOKENS = 131_072
"""The search for the largest pack ends here."""


def round_down(tokens: int) -> int:
    """Return a round number of tokens that is not larger."""
    step = 1024 if tokens >= 8192 else 256 if tokens >= 1024 else 64
    return tokens // step * step


def is_8bit(optim: str) -> bool:
    """Whether an optimizer of this name keeps its state in 8 bits."""
    return optim in ("adamw_8bit", "adamw_bnb_8bit")


def choose_attention(name: str) -> str:
    """Return the attention function to count with. All that attend within examples keep the same tensors."""
    return name if name in ("eager", "sdpa") else "packed_sdpa"


def has_text_head(outline: Checkpoint) -> bool:
    """Whether the files of a model have a head over text. Those of a model that is not here are taken to have one."""
    folder = Path(outline.name_or_path)
    try:
        return TEXT_HEAD in read_headers(find_weight_files(folder))
    except UserError:
        return True


def build_planned_arguments(recipe: Recipe) -> TrainingArguments:
    """Build the arguments of Trainer as far as they matter for memory, also those that need a GPU."""
    values: dict[str, Any] = build_training_arguments(recipe)
    is_mixed = values.pop("bf16") or values.pop("fp16", False)
    values = {name: value for name, value in values.items() if name not in NOT_PLANNED}
    plain = {"use_cpu": True, "bf16": is_mixed, "fp16": False, "report_to": "none", "push_to_hub": False}
    return build_arguments(values | plain)


def vary(recipe: Recipe, section: str, **fields: Any) -> Recipe:
    """Return the recipe with other values in one section."""
    changed = getattr(recipe, section).model_copy(update=fields)
    return recipe.model_copy(update={section: changed})
