"""The whole configuration of a run: frozen dataclasses, read from YAML, written back in full.

The fields of `training` are transformers' `TrainingArguments` of the same names, with this package's defaults.
How a file and a command line become these classes is in `recipe_file.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe.reading import FolderOrName, read_sections
from higgs_trainer.recipe.yaml_file import to_plain, write_yaml


@dataclass(frozen=True)
class ModelRecipe:
    """The checkpoint to start from. `codec` null: the codec folder inside the model's folder. `attn_implementation`:
    "packed_sdpa" attends within each example of a pack; on a GPU "flash_attention_2" does that in one kernel. `freeze`:
    kinds of modules that full fine-tuning leaves as they are."""

    name_or_path: FolderOrName
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str = "packed_sdpa"
    codec: Literal["embedded"] | FolderOrName | None = None
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRecipe:
    """Prepared folders: what `higgs-trainer prepare` wrote. `packing`: a training batch is one row of whole examples,
    `tokens_per_pack` tokens at most, text and audio; without it, `per_device_train_batch_size` padded examples.
    `code_noise`: the share of input codes replaced by random ones in training, never in evaluation; targets stay true.
    """

    train: Path
    eval: Path | None = None
    packing: bool = True
    tokens_per_pack: int = 4096
    code_noise: float = 0.0


@dataclass(frozen=True)
class AdapterRecipe:
    """LoRA, by PEFT's own `LoraConfig`, whose fields these are.

    `target_modules`: a preset ("attention", "attention+audio_ffn", "all_linear") or names of modules. PEFT's `bias` is
    not among them: no linear module of a Higgs Audio model has one.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "attention+audio_ffn"
    exclude_modules: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "olora", "pissa"] = True


@dataclass(frozen=True)
class LossRecipe:
    """Weights of the loss's terms; `codebook_weights` null: 1 each."""

    audio_weight: float = 1.0
    codebook_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class GuardRecipe:
    """What happens to a label on its way into the model: it goes to the loss, or the run stops."""

    policy: Literal["divert", "raise"] = "divert"


Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
]
When = Literal["no", "steps", "epoch"]


@dataclass(frozen=True)
class TrainingRecipe:
    """Fields of `TrainingArguments`. A `*_steps` below 1 is a share of all steps, as there.
    `per_device_train_batch_size` null: one pack, or 8 examples without packing."""

    output_dir: Path
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch_fused"
    lr_scheduler_type: Scheduler = "cosine"
    warmup_steps: int | float = 0
    per_device_train_batch_size: int | None = None
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1
    label_smoothing_factor: float = 0.0
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    use_cpu: bool = False
    seed: int = 42
    data_seed: int | None = None
    full_determinism: bool = False
    dataloader_num_workers: int = 0
    dataloader_pin_memory: bool = True
    ddp_find_unused_parameters: bool | None = False
    logging_strategy: When = "steps"
    logging_steps: int | float = 10
    logging_first_step: bool = False
    eval_strategy: When = "no"
    eval_steps: int | float | None = None
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    save_steps: int | float = 500
    save_total_limit: int | None = 2
    save_only_model: bool = False
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    resume_from_checkpoint: bool | Path | None = None
    report_to: str | tuple[str, ...] = "none"
    run_name: str | None = None
    disable_tqdm: bool | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None


@dataclass(frozen=True)
class SamplesRecipe:
    """Sentences spoken at each evaluation and after training: `texts`, in the reference's voice where there is one, and
    the first `held_out` of `data.eval`, each with its own references. `judged`: a recogniser and a speaker encoder hear
    the held-out ones, so that `eval_wer`, `eval_cer`, `eval_similarity` and `eval_stopped` can choose the best."""

    texts: tuple[str, ...] = ()
    ref_audio: Path | None = None
    ref_text: str | None = None
    max_seconds: float = 10.0
    held_out: int = 0
    judged: bool = False


@dataclass(frozen=True)
class EarlyStoppingRecipe:
    """Stop when `training.metric_for_best_model` has not improved by `threshold` in `patience` evaluations."""

    patience: int
    threshold: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A run. `adapter` null: all parameters are trained."""

    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    adapter: AdapterRecipe | None = None
    loss: LossRecipe = field(default_factory=LossRecipe)
    guard: GuardRecipe = field(default_factory=GuardRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)
    early_stopping: EarlyStoppingRecipe | None = None


ERROR_RATES = (
    "wer",
    "cer",
)  # of what is spoken; Trainer would take only a loss to be better the smaller it is
EXAMPLES_PER_BATCH = 8  # without packing, where the recipe does not say

# The least that a number may be. What is in no row is left to the library that takes it.
MINIMA = {
    "data.code_noise": 0,
    "data.tokens_per_pack": 1,
    "adapter.r": 1,
    "adapter.lora_dropout": 0,
    "loss.audio_weight": 0,
    "samples.max_seconds": 0.1,
    "samples.held_out": 0,
    "early_stopping.patience": 1,
    "early_stopping.threshold": 0,
    "training.learning_rate": 0,
    "training.warmup_steps": 0,
    "training.per_device_train_batch_size": 1,
    "training.per_device_eval_batch_size": 1,
    "training.gradient_accumulation_steps": 1,
    "training.dataloader_num_workers": 0,
    "training.label_smoothing_factor": 0,
    "training.save_total_limit": 1,
    "training.seed": 0,
    "training.data_seed": 0,
}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, and set over it what the command line says.

    Args:
        overrides: `--section.field value`, `--field=value` where only one section has such a field, and `--field`
            alone for true.

    Raises:
        RecipeError: the file cannot be read, or anything in it or in `overrides` is wrong: all of it together.
    """
    recipe: Recipe = read_sections(Recipe, Path(path), overrides, minima=MINIMA)
    problems = [f"{path}: {problem}" for problem in _check_together(recipe)]
    if problems:
        raise RecipeError("\n".join(problems))
    return recipe


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write every field, defaults too, so that `read_recipe` gives back an equal recipe."""
    write_yaml(asdict(recipe), Path(path))


def training_arguments(recipe: Recipe) -> dict[str, Any]:
    """The `training` section as the arguments of `TrainingArguments`.

    `resume_from_checkpoint` is left out: it goes to `Trainer.train`. The sampler is sequential, since the order of an
    epoch is in its plan (`dataset/packing.py`). `gradient_checkpointing` is passed only when it
    is on: transformers gives the switch another name in version 6 and warns of the old one. `hub_strategy`: Trainer
    would otherwise push each checkpoint on the way, with a pickle of these arguments.
    """
    arguments = to_plain(asdict(recipe.training))
    del arguments["resume_from_checkpoint"]
    if arguments["greater_is_better"] is None and (arguments["metric_for_best_model"] or "").endswith(
        ERROR_RATES
    ):
        arguments["greater_is_better"] = False
    arguments["train_sampling_strategy"] = "sequential"
    arguments["hub_strategy"] = "end"
    if arguments["per_device_train_batch_size"] is None:
        arguments["per_device_train_batch_size"] = 1 if recipe.data.packing else EXAMPLES_PER_BATCH
    if not arguments["gradient_checkpointing"]:
        del arguments["gradient_checkpointing"]
    return arguments


def _check_together(recipe: Recipe) -> Iterator[str]:
    """What is wrong between fields that are right by themselves."""
    training = recipe.training
    if training.eval_strategy != "no" and recipe.data.eval is None:
        yield "training.eval_strategy needs data.eval, a prepared folder"
    if recipe.data.packing and training.per_device_train_batch_size not in (None, 1):
        yield (
            f"training.per_device_train_batch_size is {training.per_device_train_batch_size}, but with data.packing a "
            "batch is one pack; set data.tokens_per_pack instead, or data.packing: false"
        )
    if training.bf16 and training.fp16:
        yield "training.bf16 and training.fp16 exclude each other; keep one"
    if training.load_best_model_at_end and training.eval_strategy == "no":
        yield "training.load_best_model_at_end needs training.eval_strategy"
    if training.metric_for_best_model is not None and training.eval_strategy == "no":
        yield "training.metric_for_best_model is measured in evaluations; it needs training.eval_strategy"
    if training.save_strategy == "best" and training.metric_for_best_model is None:
        yield "training.save_strategy best needs training.metric_for_best_model"
    if recipe.early_stopping is not None and training.metric_for_best_model is None:
        yield "early_stopping needs training.metric_for_best_model"
    if training.greater_is_better and (training.metric_for_best_model or "").endswith(ERROR_RATES):
        yield f"training.greater_is_better: {training.metric_for_best_model} is better the smaller it is; leave it out"
    if recipe.model.freeze and recipe.adapter is not None:
        yield "model.freeze is for full fine-tuning; beside an adapter the model is frozen already: leave one out"
    yield from _check_samples(recipe)


def _check_samples(recipe: Recipe) -> Iterator[str]:
    samples = recipe.samples
    if samples.judged and not samples.held_out:
        yield "samples.judged needs samples.held_out, a number of sentences to be judged"
    if samples.held_out and recipe.data.eval is None:
        yield "samples.held_out needs data.eval, a prepared folder"
    if (samples.ref_audio is None) != (samples.ref_text is None):
        yield "samples.ref_audio and samples.ref_text are a recording and its words; give both or neither"
