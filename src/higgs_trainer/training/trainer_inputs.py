"""Build what Trainer takes from what users of ``HiggsAudioTrainer`` give: names, folders, prepared datasets, a LoRA.

Whatever is built already, such as a module, a dataset of examples or a collator, is passed on as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import TrainingArguments, set_seed

from higgs_trainer.audio.codec import Codec
from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.dataset.prepared import PreparedDataset
from higgs_trainer.errors import RecipeError, UserError
from higgs_trainer.model.families import Family, family_of
from higgs_trainer.model.indexed_layers import index_layers
from higgs_trainer.model.loaded_dtype import AUTO
from higgs_trainer.model.loading import (
    Checkpoint,
    load_checkpoint,
    load_codec_of,
    load_outline,
    load_tokenizer,
)
from higgs_trainer.model.model_files import write_model_checksums
from higgs_trainer.model.model_folder import copy_companions
from higgs_trainer.model.parameters import freeze_text_head
from higgs_trainer.model.peft_config import add_configured_lora
from higgs_trainer.recipe.training_fields import REFUSED
from higgs_trainer.training.datasets import LoadedSets, load_sets, plan_evaluation, plan_training

PreparedSet = str | Path | PreparedDataset
AnyModel = str | Path | nn.Module

HARMFUL_ARGUMENTS = (
    "auto_find_batch_size",
    "dataloader_in_order",
    "dataloader_persistent_workers",
    "deepspeed",
    "liger_kernel_config",
    "parallelism_config",
    "train_sampling_strategy",
    "use_cache",
    "use_liger_kernel",
)
"""Arguments with which training would silently differ from what was asked for; `REFUSED` has the reasons. The other
refused fields of a recipe have no effect on this trainer."""


@dataclass(frozen=True)
class GivenInputs:
    """The arguments of ``HiggsAudioTrainer`` that may have to be built.

    Attributes:
        init_kwargs: arguments of `load_checkpoint`, if ``model`` is a name.
        tokens_per_pack: the capacity of a pack. None: padded batches.
    """

    model: AnyModel
    args: TrainingArguments
    family: Family | None
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    peft_config: LoraConfig | None
    codec: Codec | str | Path | None
    init_kwargs: Mapping[str, Any] | None
    tokens_per_pack: int | None

    def list_options(self) -> dict[str, Any]:
        """Return the arguments of `load_checkpoint`: those given, or those of a recipe."""
        default = AUTO if self.peft_config is not None else "float32"
        options = {"attn_implementation": "packed_sdpa", "dtype": default} | dict(self.init_kwargs or {})
        return options | {"dtype": str(options["dtype"]).removeprefix("torch.")}


@dataclass(frozen=True)
class BuiltInputs:
    """What belongs to the model of a trainer. It encodes prepared datasets for this model.

    Attributes:
        outline: the model, which may have no weights, and its tokenizer.
        given_codec: the codec of the model, by name or loaded. None: the one that `find_codec` finds.
    """

    args: TrainingArguments
    outline: Checkpoint
    given_codec: Codec | str | Path | None
    tokens_per_pack: int | None

    @cached_property
    def codec(self) -> Codec:
        """The codec of the model.

        Raises:
            UserError: it is not given, and the model has no name by which it could be found.
        """
        if not self.outline.name_or_path and self.given_codec is None:
            raise UserError(
                "the model was not loaded from a folder or from the hub, so its codec is not known, and the codes of a "
                "prepared dataset cannot be compared with it. Pass codec= with the codec of the model."
            )
        return load_codec_of(self.outline, self.given_codec)

    def load(self, dataset: PreparedSet | Sequence[PreparedSet]) -> LoadedSets:
        """Open prepared datasets, and check that their codes were made by the codec of the model."""
        several = [dataset] if isinstance(dataset, PreparedSet) else dataset
        opened = [one if isinstance(one, PreparedDataset) else Path(one) for one in several]
        return load_sets(opened, self.outline, self.codec)

    def build_training_set(self, dataset: Any) -> Any:
        """Plan a prepared dataset for training. Another dataset is returned as it is."""
        if not is_prepared(dataset):
            return dataset
        if self.tokens_per_pack is not None and self.args.per_device_train_batch_size != 1:
            raise UserError(
                f"tokens_per_pack is given, and a pack is a whole batch, but args.per_device_train_batch_size is "
                f"{self.args.per_device_train_batch_size}. Set per_device_train_batch_size=1, or leave tokens_per_pack "
                "out for padded batches."
            )
        return plan_training(
            self.load(dataset),
            self.args,
            num_codes=self.outline.num_codes,
            tokens_per_pack=self.tokens_per_pack,
        )

    def build_evaluation_set(self, dataset: Any) -> Any:
        """Encode a prepared dataset, or each one of a dict, for evaluation. Another dataset is returned as it is."""
        if isinstance(dataset, Mapping):
            return {name: self.build_evaluation_set(one) for name, one in dataset.items()}
        if not is_prepared(dataset):
            return dataset
        return plan_evaluation(self.load(dataset).examples, self.args)

    def complete_folder(self, folder: Path) -> None:
        """Copy codec and processor of the model next to a saved model, and write the checksums of the folder."""
        if self.outline.name_or_path:
            copy_companions(self.outline.name_or_path, folder)
        write_model_checksums(folder)


def is_prepared(dataset: Any) -> TypeGuard[PreparedSet | Sequence[PreparedSet]]:
    """Return whether this is a prepared dataset, its folder, or a list of these.

    Raises:
        UserError: it is a ``datasets.Dataset``, which does not say by which codec its codes were made.
    """
    if type(dataset).__module__.startswith("datasets."):
        raise UserError(
            f"the dataset is a {type(dataset).__name__}, which does not say by which codec its codes were made. Give "
            "the folder that prepare wrote, or read_prepared(folder)."
        )
    if isinstance(dataset, list | tuple):
        return bool(dataset) and all(isinstance(one, PreparedSet) for one in dataset)
    return isinstance(dataset, PreparedSet)


def build_inputs(given: GivenInputs) -> tuple[BuiltInputs, dict[str, Any]]:
    """Build what is missing. Datasets come first, so that their mistakes are found before weights are loaded.

    Returns:
        The model and what belongs to it, and the arguments of Trainer.

    Raises:
        UserError: an argument does not fit the others, the model or the data.
    """
    check_arguments(given.args)
    outline = _open_outline(given)
    built = BuiltInputs(given.args, outline, given.codec, given.tokens_per_pack)
    train_dataset = built.build_training_set(given.train_dataset)
    eval_dataset = built.build_evaluation_set(given.eval_dataset)
    collator = given.data_collator
    if collator is None:
        check_packing(outline.family, packing=given.tokens_per_pack is not None)
        collator = build_collator(outline, packing=given.tokens_per_pack is not None)
    return built, {
        "model": _build_model(given),
        "args": given.args,
        "data_collator": collator,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "processing_class": given.processing_class or outline.tokenizer,
    }


def _open_outline(given: GivenInputs) -> Checkpoint:
    """Return the given module, or a model that is given by name without its weights, with its tokenizer."""
    tokenizer = getattr(given.processing_class, "tokenizer", given.processing_class)
    if isinstance(given.model, str | Path):
        attention = {key: value for key, value in given.list_options().items() if key != "dtype"}
        outline = load_outline(given.model, **attention)
        return outline if tokenizer is None else replace(outline, tokenizer=tokenizer)
    if given.init_kwargs:
        raise UserError(
            "model_init_kwargs are for a model that is given by name. Pass them where you load it."
        )
    name = str(getattr(given.model, "name_or_path", ""))
    if tokenizer is None and name:
        tokenizer = load_tokenizer(name)
    return Checkpoint(name, given.model, tokenizer)


def _build_model(given: GivenInputs) -> nn.Module:
    """Load the model if it is given by name, and add its adapter. The seed decides the adapter's initial values."""
    name = given.model if isinstance(given.model, str | Path) else None
    if given.peft_config is not None and isinstance(given.model, PeftModel):
        raise UserError("the model has an adapter already. Give its base model, or leave peft_config out.")
    if isinstance(given.model, nn.Module) and given.peft_config is None:
        return given.model
    set_seed(given.args.seed)
    model: Any = given.model
    if name is not None:
        model = load_checkpoint(name, **given.list_options(), keep_text_head=given.peft_config is None).model
    family = given.family or family_of(model)
    if given.peft_config is not None:
        model = add_configured_lora(model, family, given.peft_config)
    freeze_text_head(model, family)
    if name is not None:
        index_layers(model)
    return model


def check_arguments(arguments: TrainingArguments) -> None:
    """Check that no argument has a value with which training would silently differ from what was asked for.

    Raises:
        UserError: names the argument and the reason.
    """
    for name in HARMFUL_ARGUMENTS:
        refusal, default = REFUSED[name], TrainingArguments.__dataclass_fields__.get(name)
        value = getattr(arguments, name, refusal.fixed_value)
        if value != refusal.fixed_value and (default is None or value != default.default):
            raise UserError(
                f"args.{name} is {value!r}, which is refused: {refusal.why}. {refusal.what_to_do}"
            )


def check_packing(family: Family, *, packing: bool) -> None:
    """Raise RecipeError if packs are asked for, but the model takes no position ids: they mark where examples start."""
    if packing and "position_ids" not in family.contract.inputs:
        raise RecipeError(f"data.packing: {family.name} takes no position_ids. Set data.packing to false.")


def build_collator(checkpoint: Checkpoint, *, packing: bool) -> PackingCollator | PaddingCollator:
    """Build the collator: for packs, or for padded batches."""
    ids = checkpoint.stream_ids
    if packing:
        return PackingCollator(ids.num_codebooks)
    return PaddingCollator(checkpoint.model.config.pad_token_id, ids.end, ids.num_codebooks)
