"""Which settings make a resumed run another run, which are harmless, and which no resumed run can change.

A setting that is in none of these tables matters: a resumed run refuses it unless the user allows the change. So a
setting that transformers adds later is compared too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

WHERE = "a place, not a value of the training"
WATCHING = "it decides what is shown, not what is trained"
SPEED = "it changes speed or memory, not numbers"
SAVING = "it decides when a checkpoint is saved, not what is trained"
UPLOAD = "it concerns the hub, after training"
RANDOM_STATE_KEPT = "samples leave the random state of the training as it was"

HARMLESS: Mapping[str, str] = {
    "model.name_or_path": f"{WHERE}; the fingerprint of the model is compared",
    "model.codec": f"{WHERE}; the data's content hash covers the codec",
    "data.train": f"{WHERE}; content hashes and weights are compared",
    "data.eval": f"{WHERE}; content hashes are compared",
    "guard.policy": "a run without a leak is the same under both policies",
    "samples.texts": RANDOM_STATE_KEPT,
    "samples.ref_audio": RANDOM_STATE_KEPT,
    "samples.ref_text": RANDOM_STATE_KEPT,
    "training.output_dir": WHERE,
    "training.resume_from_checkpoint": WHERE,
    "training.run_name": WATCHING,
    "training.report_to": WATCHING,
    "training.project": WATCHING,
    "training.trackio_space_id": WATCHING,
    "training.trackio_bucket_id": WATCHING,
    "training.trackio_static_space_id": WATCHING,
    "training.disable_tqdm": WATCHING,
    "training.logging_strategy": WATCHING,
    "training.logging_steps": WATCHING,
    "training.logging_first_step": WATCHING,
    "training.logging_nan_inf_filter": WATCHING,
    "training.log_level": WATCHING,
    "training.log_level_replica": WATCHING,
    "training.log_on_each_node": WATCHING,
    "training.include_num_input_tokens_seen": WATCHING,
    "training.skip_memory_metrics": WATCHING,
    "training.debug": WATCHING,
    "training.dataloader_num_workers": SPEED,
    "training.dataloader_pin_memory": SPEED,
    "training.dataloader_prefetch_factor": SPEED,
    "training.dataloader_multiprocessing_context": SPEED,
    "training.gradient_checkpointing": SPEED,
    "training.gradient_checkpointing_kwargs": SPEED,
    "training.activation_checkpointing": SPEED,
    "training.activation_checkpointing_kwargs": SPEED,
    "training.torch_empty_cache_steps": SPEED,
    "training.eval_accumulation_steps": SPEED,
    "training.ddp_find_unused_parameters": SPEED,
    "training.ddp_bucket_cap_mb": SPEED,
    "training.ddp_static_graph": SPEED,
    "training.ddp_timeout": SPEED,
    "training.save_steps": SAVING,
    "training.save_total_limit": SAVING,
    "training.save_only_model": SAVING,
    "training.save_on_each_node": SAVING,
    "training.push_to_hub": UPLOAD,
    "training.hub_model_id": UPLOAD,
    "training.hub_private_repo": UPLOAD,
    "training.hub_revision": UPLOAD,
    "training.hub_token": UPLOAD,
    "training.restore_callback_states_from_checkpoint": "the state of early stopping is restored in any case",
    "versions.datasets": "it only opens the prepared data, whose content is compared",
}
"""The settings that a resumed run may change, with the reason. They take effect and are not recorded."""

DECIDES_NOTHING = "no schedule, early stopping or best checkpoint of this run depends on an evaluation"

EVALUATION: Mapping[str, str] = dict.fromkeys(
    (
        "data.eval_content",
        "training.eval_strategy",
        "training.eval_steps",
        "training.eval_delay",
        "training.eval_on_start",
        "training.per_device_eval_batch_size",
        "training.bf16_full_eval",
        "training.fp16_full_eval",
        "training.save_strategy",
        "samples.max_seconds",
        "samples.greedy",
        "samples.temperature",
        "samples.top_k",
        "samples.top_p",
        "samples.held_out",
        "samples.judged",
        "samples.words",
        "samples.language",
        "samples.recogniser",
        "samples.recogniser_languages",
    ),
    DECIDES_NOTHING,
)
"""Further settings that are harmless if no evaluation decides anything (`are_evaluations_decisive`)."""

STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""The schedules whose learning rate is a result of the run so far, not a function of the step."""

SHAPE = "The matrices of the checkpoint have another shape or place"
STATE = "The state of the optimizer in the checkpoint belongs to other parameters or another optimizer"
BEST = "The best value so far is one of the old metric"
LAYOUT = "The files of the checkpoint are laid out for the old setting"

FIXED: Mapping[str, str] = {
    "base_model.family": "The weights belong to another kind of model",
    "adapter": SHAPE,
    "world_size": "Each process has its own share of the examples and its own random state",
    "adapter.r": SHAPE,
    "adapter.target_modules": SHAPE,
    "adapter.exclude_modules": SHAPE,
    "adapter.modules_to_save": SHAPE,
    "adapter.layers_to_transform": SHAPE,
    "adapter.rank_pattern": SHAPE,
    "adapter.use_dora": SHAPE,
    "adapter.init_lora_weights": "Initial weights are not drawn again",
    "model.freeze": STATE,
    "optimizer": STATE,
    "training.optim": STATE,
    "training.optim_args": STATE,
    "training.optim_target_modules": STATE,
    "training.fp16": "The checkpoint has, or lacks, the state of the gradient scaler",
    "training.metric_for_best_model": BEST,
    "training.greater_is_better": BEST,
    "training.fsdp": LAYOUT,
    "training.fsdp_config": LAYOUT,
}
"""The settings that cannot be applied to a checkpoint, with the reason."""

ORDER = frozenset(
    {
        "data.train_content",
        "data.packing",
        "data.tokens_per_pack",
        "data.groups_per_epoch",
        "training.per_device_train_batch_size",
        "training.gradient_accumulation_steps",
        "training.seed",
        "training.data_seed",
    }
)
"""The settings on which the order of the examples depends."""

LENGTH = ("training.max_steps", "training.num_train_epochs")
"""The settings that a run may raise without being asked: it is extended."""


OPTIONAL_SECTIONS = ("adapter", "early_stopping")
"""The sections that a recipe may leave out. Their fields come with a field of the section's name, "on" or None."""


def are_evaluations_decisive(settings: Mapping[str, Any]) -> bool:
    """Return whether the learning rate, the end or the result of the run depends on an evaluation."""
    return (
        settings.get("early_stopping") is not None
        or bool(settings.get("training.load_best_model_at_end"))
        or settings.get("training.lr_scheduler_type") in STATEFUL_SCHEDULES
    )


def is_harmless(field: str, *settings: Mapping[str, Any]) -> bool:
    """Return whether a field may differ between settings of an old and a resumed run."""
    if field in HARMLESS:
        return True
    return field in EVALUATION and not any(map(are_evaluations_decisive, settings))


def is_extension(field: str, was: Any, now: Any, settings: Mapping[str, Any]) -> bool:
    """Return whether a change makes the run longer and nothing else."""
    if field == "training.max_steps":
        return bool(was > 0 and now > was)
    if field == "training.num_train_epochs":
        return bool(now > was or settings["training.max_steps"] > 0)
    return False


def find_reason_against(field: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return why a field of a resumed run cannot be changed, or None if it can."""
    if field in FIXED:
        return FIXED[field]
    schedules = {settings.get("training.lr_scheduler_type") for settings in (was, now)}
    if field in ("training.lr_scheduler_type", "training.learning_rate") and schedules & {
        *STATEFUL_SCHEDULES
    }:
        return "The learning rate of this schedule is a result of the run so far"
    return None


def list_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each field of ``now`` that matters and has another value in ``was``: (field, old value, new value)."""
    for field in (*now, *(name for name in was if name not in now)):
        old, new = was.get(field), now.get(field)
        section = field.partition(".")[0]
        # A section that is only in one of the two recipes is one difference.
        is_part = section in OPTIONAL_SECTIONS and section != field
        if is_part and (was.get(section) is None or now.get(section) is None):
            continue
        if old != new and not is_harmless(field, was, now):
            yield field, old, new
