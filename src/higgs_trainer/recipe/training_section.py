"""The section `training` of a recipe: fields of `TrainingArguments` with this project's defaults, and all others."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from higgs_trainer.limits import LARGEST_EPOCHS, MOST_WORKERS
from higgs_trainer.recipe.problems import raise_problems
from higgs_trainer.recipe.training_fields import check_extra_arguments
from higgs_trainer.recipe.values import (
    Count,
    FilePath,
    Names,
    NotNegative,
    NotNegativeSteps,
    NotNegativeWhole,
    Scheduler,
    Section,
    Seed,
    Share,
    Steps,
    Text,
    When,
    Whole,
    get_folder,
)


class TrainingRecipe(Section):
    """Fields of transformers' `TrainingArguments`, under their own names. Those listed here have this project's
    defaults; every other field may be written too and is passed on (see `extra_arguments`)."""

    output_dir: FilePath
    """Folder for checkpoints, logs and the result."""

    learning_rate: NotNegative = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: Scheduler = "cosine"
    """Schedule of the learning rate."""
    warmup_steps: NotNegativeSteps = 0
    """Steps of linear warm-up; below 1, a share of all steps."""
    optim: Text = "adamw_torch_fused"
    """Name of the optimizer."""
    weight_decay: NotNegative = 0.0
    """Weight decay of the optimizer."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of Adam's first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of Adam's second moment."""
    adam_epsilon: NotNegative = 1e-8
    """Constant that keeps Adam from dividing by zero."""
    max_grad_norm: float = 1.0
    """Norm to which the gradient is clipped. 0: no clipping."""
    label_smoothing_factor: Share = 0.0
    """Label smoothing in the training loss. The validation loss is never smoothed."""

    num_train_epochs: Annotated[float, Field(gt=0, le=LARGEST_EPOCHS)] = 3.0
    """Number of epochs, unless max_steps is set."""
    max_steps: Whole = -1
    """Number of optimizer steps. -1: as many as num_train_epochs takes."""
    per_device_train_batch_size: Count | None = None
    """Examples in a batch on each device. null: one pack, or 8 examples without packing."""
    per_device_eval_batch_size: Count = 8
    """Examples in a batch of the evaluation on each device."""
    gradient_accumulation_steps: Count = 1
    """Batches whose gradients are added up for one optimizer step."""

    bf16: bool = False
    """Mixed precision with bfloat16."""
    fp16: bool = False
    """Mixed precision with float16."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, slower steps."""
    use_cpu: bool = False
    """Train on the CPU even where there is a GPU."""
    ddp_find_unused_parameters: bool | None = False
    """Let DDP look for parameters that a step did not use."""

    seed: Seed = 42
    """Random seed of initial adapter weights, dropout and, unless data_seed is set, the order of the data."""
    data_seed: Seed | None = None
    """Random seed of the order of the data. null: the same as seed."""
    full_determinism: bool = False
    """Use deterministic kernels only, which is slower."""
    dataloader_num_workers: Annotated[NotNegativeWhole, Field(le=MOST_WORKERS)] = 0
    """Processes that load data. 0: the main process does."""
    dataloader_pin_memory: bool = True
    """Put batches into pinned memory, which speeds up copies to a GPU."""

    logging_strategy: When = "steps"
    """When to log."""
    logging_steps: Steps = 10
    """Steps between logs; below 1, a share of all steps."""
    logging_first_step: bool = False
    """Log the first step too."""
    report_to: Text | Names = "none"
    """Integrations to log to, such as "tensorboard" or "wandb"; "all" or "none"."""
    run_name: Text | None = None
    """Name of the run in those integrations."""
    disable_tqdm: bool | None = None
    """Show no progress bar."""

    eval_strategy: When = "no"
    """When to evaluate on data.eval."""
    eval_steps: Steps | None = None
    """Steps between evaluations; below 1, a share of all steps. null: logging_steps."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    """When to save a checkpoint."""
    save_steps: Steps = 500
    """Steps between checkpoints; below 1, a share of all steps."""
    save_total_limit: Count | None = 2
    """Number of checkpoints to keep: the newest ones, and the best one always."""
    save_only_model: bool = False
    """Save checkpoints without the state of the optimizer. Such a checkpoint cannot be resumed."""
    load_best_model_at_end: bool = False
    """Make the best checkpoint the result, not the last step."""
    metric_for_best_model: Text | None = None
    """Metric of the evaluation that decides which checkpoint is best."""
    greater_is_better: bool | None = None
    """Whether a larger metric is better. null: decided by its name."""
    resume_from_checkpoint: bool | FilePath | None = None
    """Checkpoint to continue from. true: the newest one in output_dir."""

    push_to_hub: bool = False
    """Upload the result to the Hugging Face hub after training."""
    hub_model_id: Text | None = None
    """Name of the repository on the hub."""
    hub_private_repo: bool | None = None
    """Create the repository as a private one."""

    extra_arguments: dict[str, Any] = Field(default_factory=dict)
    """Every other field of `TrainingArguments`, passed on as it is. In a recipe these are written like the fields
    above, directly under `training`; a few that would break a promise of this project are refused."""

    @model_validator(mode="before")
    @classmethod
    def _collect_extra_arguments(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = {name: value for name, value in values.items() if name in cls.model_fields}
        extra = {name: value for name, value in values.items() if name not in own}
        given = own.get("extra_arguments", {})
        if not extra or not isinstance(given, dict):
            return own
        raise_problems(
            "extra_arguments",
            (
                ((name,), "is given under extra_arguments too", "Keep one of them.")
                for name in extra
                if name in given
            ),
        )
        return own | {"extra_arguments": given | extra}

    @field_validator("extra_arguments")
    @classmethod
    def _check_extra_arguments(cls, arguments: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return check_extra_arguments(arguments, own=cls.list_own_fields(), folder=get_folder(info))

    @classmethod
    def list_own_fields(cls) -> list[str]:
        """Return the names of the fields of `TrainingArguments` that are listed here."""
        return [name for name in cls.model_fields if name != "extra_arguments"]

    @model_serializer(mode="wrap")
    def _write_extra_arguments(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the extra arguments as a recipe has them, next to the other fields."""
        values: dict[str, Any] = write(self)
        return values | values.pop("extra_arguments")
