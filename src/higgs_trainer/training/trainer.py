"""``HiggsAudioTrainer``: Hugging Face's Trainer with the label guard and the loss of ``losses.py``.

One optimizer step, in order:

    data loader     dataset/packing.py          the plan of the epoch says which examples go together
                    model/example_encoding.py   a prepared row becomes an example (once)
                    dataset/code_noise.py       in training, a share of the codes may be replaced
    collator        dataset/collator.py         examples become a batch: model inputs, targets, metadata
    counts          `count_targets`             supervised cells in the whole step, all micro-batches, all ranks
    guard           label_guard/mixin.py        layers 1 to 4: targets leave the batch, an unknown key is an error
    loss            `compute_guarded_loss`      for each micro-batch:
      forward       transformers' model         layer 5 of the guard; model/attention.py, model/indexed_layers.py
      alignment     model/families/             logits next to the targets that they predict
      terms         training/losses.py          cross-entropies, divided by the counts of the step
      totals        training/metrics.py         sums for the next log
    backward        Trainer
    clipping        Trainer                     `_clip_grad_norm` keeps the norm
    finiteness      training/stopping.py        a loss or a gradient that is not finite stops the run here
    optimizer       Trainer                     and the learning-rate schedule
    log             `log`                       totals become metrics; training/callbacks.py shows and stores them

``training/evaluation.py`` runs the same steps up to the totals, ``training/usable_folder.py`` saves the result, and
``training/checkpoints.py`` saves and resumes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments

from higgs_trainer.dataset.examples import Example
from higgs_trainer.dataset.packing import PlannedExamples
from higgs_trainer.errors import LossError, RecipeError, UserError
from higgs_trainer.model.families import Aligned, Family, family_of
from higgs_trainer.model.precision import keep_trained_in_float32
from higgs_trainer.printable import join_lines
from higgs_trainer.tensors import check_pack
from higgs_trainer.training.callbacks import KeepSpecialTokens, hiding_alignment
from higgs_trainer.training.checkpoints import CompleteCheckpoints
from higgs_trainer.training.evaluation import WholeSetEvaluation, check_divides
from higgs_trainer.training.losses import (
    LossWeights,
    compute_audio_loss,
    compute_cross_entropy_sums,
    compute_text_cross_entropy_sum,
    count_cells,
    count_correct_first,
)
from higgs_trainer.training.metrics import LossTotals
from higgs_trainer.training.run_record import RunRecord
from higgs_trainer.training.sharding import ShardedTraining
from higgs_trainer.training.stopping import BatchLoss, FiniteSteps
from higgs_trainer.training.usable_folder import UsableFolder
from label_guard import LabelGuardMixin, ModelInputs

if TYPE_CHECKING:
    from peft import LoraConfig

    from higgs_trainer.audio.codec import Codec
    from higgs_trainer.training.trainer_inputs import AnyModel, BuiltInputs


@contextmanager
def _explain_refusal(what: str, fields: str) -> Iterator[None]:
    """Raise a RecipeError that names fields of the recipe where a library refuses their values."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        raise RecipeError(f"the {what} cannot be built ({join_lines(error)}). Correct {fields}.") from error


class HiggsAudioTrainer(
    UsableFolder, WholeSetEvaluation, CompleteCheckpoints, ShardedTraining, LabelGuardMixin, Trainer
):
    """Train a Higgs Audio model, or adapters on it, on prepared datasets.

    The arguments that are not listed are those of ``Trainer``.

    Args:
        model: the folder or hub name of a model, or a module. With a PEFT model, its adapter is trained.
        args: any ``TrainingArguments``. None: their default values.
        data_collator: None: padded batches or, with ``tokens_per_pack``, packs.
        train_dataset: a prepared dataset (`read_prepared`), its folder, or a list of these; or a dataset of examples.
        eval_dataset: the same, or a dict of these, whose names become part of the metrics: ``eval_NAME_loss``.
        processing_class: the tokenizer or processor. None: the tokenizer of the model.
        peft_config: a ``LoraConfig`` of PEFT. Without target_modules, attention and audio FFN get an adapter; the
            presets of a recipe are accepted too. None: all parameters are trained.
        codec: the codec of the model, by name or loaded (`prepare`). None: the codec in the folder of the model.
        tokens_per_pack: train on packs of at most so many tokens; ``args.per_device_train_batch_size`` must be 1. None:
            padded batches.
        model_init_kwargs: how to load a model that is given by name, such as ``{"dtype": "bfloat16"}``.
        family: the family of the model (``model/families/``), with the contract of the guard. None: that of its
            configuration.
        weights: the weights of the loss's terms.
        guard_policy: ``"divert"`` or ``"raise"``.
        write_card: writes the model card into a folder; by default, Trainer writes its own.
        measure_speech: returns further metrics at a step, such as a word error rate, after each evaluation during
            training. Only the main process calls it.
        keeps_record: write the log of the run and the files that `write_report` reads into ``args.output_dir``.

    Raises:
        LossError: the loss has a text term, but the model returns no logits over text.
        UserError: an argument does not fit the others, the model or the data.

    Example:
        ```python
        from peft import LoraConfig
        from transformers import TrainingArguments

        from higgs_trainer import HiggsAudioTrainer

        trainer = HiggsAudioTrainer(
            model="base",
            args=TrainingArguments("runs/by_hand", max_steps=2, learning_rate=1e-4, use_cpu=True),
            train_dataset="prepared/train",
            eval_dataset="prepared/held_out",
            peft_config=LoraConfig(r=4),
        )
        trainer.train()
        print(trainer.evaluate()["eval_loss"])
        trainer.save_model()
        ```
    """

    # The loss is divided by the counts of the whole optimizer step: Trainer must not divide it again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: "AnyModel | None" = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        peft_config: "LoraConfig | None" = None,
        codec: "Codec | str | Path | None" = None,
        tokens_per_pack: int | None = None,
        model_init_kwargs: Mapping[str, Any] | None = None,
        family: Family | None = None,
        weights: LossWeights = LossWeights(),
        guard_policy: str = "divert",
        write_card: Callable[[Path], None] | None = None,
        measure_speech: Callable[[int], Mapping[str, float]] | None = None,
        keeps_record: bool = True,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("compute_loss_func") is not None:
            raise UserError(
                "compute_loss_func would not be called, because this trainer computes its own loss. Override "
                "compute_guarded_loss in a subclass, or change the weights of the loss."
            )
        inputs = {
            "model": model,
            "args": TrainingArguments() if args is None else args,
            "data_collator": data_collator,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "processing_class": processing_class,
        }
        self.built: BuiltInputs | None = None
        # Families without a format of sequences bring their datasets and collator, and may lack the libraries of ours.
        if family is None or family.sequence is not None:
            from higgs_trainer.training.trainer_inputs import GivenInputs, build_inputs

            self.built, inputs = build_inputs(
                GivenInputs(
                    **inputs,
                    family=family,
                    peft_config=peft_config,
                    codec=codec,
                    init_kwargs=model_init_kwargs,
                    tokens_per_pack=tokens_per_pack,
                )
            )
            family = family or family_of(inputs["model"])
        if weights.text and not family.has_text_logits:
            raise LossError(
                f"the weight of the text loss is {weights.text}, but {family.name} returns no logits over text from "
                "its ordinary forward. Set the weight to 0."
            )
        if isinstance(inputs["model"], nn.Module):
            keep_trained_in_float32(inputs["model"])
        self.family = family
        self.weights = weights
        self.write_card = write_card
        self.measure_speech = measure_speech
        self.tokens_per_pack = tokens_per_pack
        self.guard_contract = family.contract
        self.guard_policy = guard_policy
        self.training_totals = LossTotals()
        self.evaluation_totals = LossTotals()
        super().__init__(**inputs, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.finite_steps = FiniteSteps(self.accelerator)
        self.add_callback(self.finite_steps)
        self.add_callback(KeepSpecialTokens(self.model))
        if keeps_record and self.built is not None:
            base = self.built.outline.name_or_path
            self.add_callback(RunRecord(Path(self.args.output_dir), self.accelerator, base))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as Trainer does."""
        with hiding_alignment():
            return super().train(*args, **kwargs)

    # A training step

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Build the data loader of training.

        Raises:
            ValueError: there are several processes, and the dataset does not divide by ranks and batch size.
        """
        check_divides(self.train_dataset, self.args.train_batch_size, self.accelerator.num_processes)
        dataloader: DataLoader[Any] = super().get_train_dataloader()
        return dataloader

    def _get_train_sampler(self, *args: Any) -> Any:
        """Return a sequential sampler for a planned dataset: its plan is the random order of the epoch."""
        dataset = args[0] if args and args[0] is not None else self.train_dataset
        return (
            SequentialSampler(dataset)
            if isinstance(dataset, PlannedExamples)
            else super()._get_train_sampler(*args)
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer of the arguments.

        Raises:
            RecipeError: it refuses `optim_args` or another setting.
        """
        with _explain_refusal("optimizer", "training.optim and training.optim_args"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Build the schedule of the learning rate.

        Raises:
            RecipeError: it refuses `lr_scheduler_kwargs` or another setting.
        """
        with _explain_refusal("schedule", "training.lr_scheduler_type and training.lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *device: Any) -> Any:
        """Take the micro-batches of a step, and start the clock if it is the first step after a log.

        The time before that, of an evaluation or a checkpoint, is not training time.
        """
        if not self.training_totals.started:
            self.training_totals.clear()
        return super().get_batch_samples(epoch_iterator, num_batches, *device)

    def count_targets(self, batch_samples: Sequence[Any]) -> Tensor | None:
        """Count the targets of the whole optimizer step over all ranks (K + 1,): cells per codebook, text tokens."""
        if not batch_samples:
            return None
        splits = [self.family.contract.split(batch) for batch in batch_samples]
        counts = torch.stack([self.family.count(split.model_inputs, split.targets) for split in splits])
        return self.accelerator.reduce(counts.sum(dim=0).to(self.args.device), reduction="sum")

    def compute_guarded_loss(
        self,
        model: nn.Module,
        model_inputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        metadata: Mapping[str, Any],
        num_items_in_batch: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """Compute the loss of one micro-batch, divided by the counts of the whole step, and the model's outputs.

        In training the outputs are None, because the gradient overwrites their logits.

        A loss that is not finite raises LossError: in training before the optimizer step, in evaluation here.

        Raises:
            LossError: the loss has a text term, but the batch has no labels of text.
        """
        if model.training:
            self._record_batch(model_inputs, metadata)
        check_pack(model_inputs)
        outputs = model(**model_inputs)
        aligned = self.family.align(outputs, model_inputs, targets)
        counts = num_items_in_batch
        if counts is None:
            counts = self.family.count(model_inputs, targets)
        overwrite = model.training and torch.is_grad_enabled()
        loss = self._sum_terms(aligned, counts, is_training=model.training, overwrite=overwrite)
        text_tokens = counts[-1] if self.weights.text else None
        names = list(map(str, metadata.get("utterance_ids", [])))
        own_cells_K = self.family.count(model_inputs, targets)[:-1]
        left_out = (own_cells_K - count_cells(aligned.audio_targets_NK)).sum()
        batch_loss = BatchLoss(loss.detach(), counts[:-1].sum(), text_tokens, left_out, names)
        if not model.training:
            batch_loss.check(self.state.global_step)
        else:
            self.finite_steps.losses.append(batch_loss)
            # DDP averages gradients over ranks, but the loss of each rank is already its share of the step.
            loss = loss * self.accelerator.num_processes
        return loss, None if overwrite else outputs

    def _sum_terms(
        self,
        aligned: Aligned,
        counts: Tensor,
        *,
        is_training: bool,
        overwrite: bool,
    ) -> Tensor:
        """Compute the weighted sum of audio loss and text loss, and add both to the totals."""
        logits_NKC, targets_NK = aligned.audio_logits_NKC, aligned.audio_targets_NK
        cells_K, text_tokens = counts[:-1], counts[-1]
        smoothing = self.args.label_smoothing_factor if is_training else 0.0
        totals = self.training_totals if is_training else self.evaluation_totals
        # Before the sums, which may overwrite the logits.
        correct = count_correct_first(logits_NKC, targets_NK)
        sums_K = compute_cross_entropy_sums(
            logits_NKC, targets_NK, label_smoothing=smoothing, overwrite=overwrite
        )
        totals.add(sums_K, count_cells(targets_NK), correct)
        weights = self.weights.list_codebook_weights(len(sums_K))
        loss = self.weights.audio * compute_audio_loss(sums_K, cells_K, weights)
        if not self.weights.text:
            return loss
        if aligned.text is None:
            raise LossError(
                f"the weight of the text loss is {self.weights.text}, but the batch has no label_ids. Set the weight "
                "to 0, or put label_ids into the batch."
            )
        text_sum = compute_text_cross_entropy_sum(
            *aligned.text, label_smoothing=smoothing, overwrite=overwrite
        )
        totals.add_text(text_sum, len(aligned.text.targets_M))
        return loss + self.weights.text * text_sum / text_tokens

    def _record_batch(self, model_inputs: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Record how full the batches of this step are."""
        if "num_tokens" in metadata:
            capacity = self.tokens_per_pack or model_inputs["input_ids"].numel()
            self.training_totals.add_tokens(sum(metadata["num_tokens"]), capacity)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Keep the gradient norm that clipping computed, so that the finiteness check does not compute it again.

        Trainer has had this method since version 5; with older versions the check computes the norm.
        """
        self.finite_steps.norm = super()._clip_grad_norm(model)
        return self.finite_steps.norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, save and evaluate as Trainer does, but not after a step that was not finite."""
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.finite_steps.settle()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *start_time: float) -> None:
        """Log the terms of the loss since the last log: codebook losses, accuracy, speed."""
        if "loss" in logs:
            logs = {**logs, **self._compute_metrics("", self.training_totals)}
        # transformers 4.46 does not pass start_time.
        super().log(logs, *start_time)

    def build_batch(self, examples: Sequence[Example]) -> ModelInputs:
        """Collate examples, move the batch to the model's device, and split it, as `evaluate` and `predict` do."""
        return self._prepare_inputs(self.data_collator(examples))
