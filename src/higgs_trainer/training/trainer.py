"""``HiggsAudioTrainer``: Hugging Face's Trainer, behind the guard, with the loss of ``losses.py``.

One training step, top to bottom:

    get_batch_samples      the guard's: takes the micro-batches of a step and asks `count_targets` for its cells
    training_step          Trainer's, behind layers 1 to 4 of the guard
    compute_guarded_loss   below: run the model on its inputs, put outputs beside targets, compute the loss
    backward, step         Trainer's and Accelerate's
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from higgs_trainer.errors import LossError
from higgs_trainer.model.families import Family
from higgs_trainer.tensors import check_pack
from higgs_trainer.training.checkpoints import CompleteCheckpoints
from higgs_trainer.training.losses import (
    LossWeights,
    compute_audio_loss,
    compute_cross_entropy_sums,
    compute_text_cross_entropy_sum,
    count_cells,
    count_correct_first,
)
from higgs_trainer.training.metrics import LossTotals
from higgs_trainer.training.stopping import FiniteGradients
from label_guard import LabelGuardMixin


class HiggsAudioTrainer(CompleteCheckpoints, LabelGuardMixin, Trainer):
    """Trains a Higgs Audio model, or adapters on it.

    Args:
        family: the family of the model (``model/families/``), with the contract of the guard.
        weights: of the loss's terms.
        guard_policy: ``"divert"`` or ``"raise"``.
        write_card: writes the model card into a folder; None: Trainer's own.
        tokens_per_pack: as many as a pack could hold, where batches are packs; ``fill`` is logged against it.
        The rest are ``Trainer``'s own.
    """

    # The loss is already normalised over the whole optimizer step: Trainer must not divide it again.
    loss_is_scaled_for_ga = True
    measure_speech: Callable[[], Mapping[str, float]] | None = None
    """Further metrics of each evaluation during training, such as a word error rate; run by the main process alone."""

    def __init__(
        self,
        *args: Any,
        family: Family,
        weights: LossWeights = LossWeights(),
        guard_policy: str = "divert",
        write_card: Callable[[Path], None] | None = None,
        tokens_per_pack: int | None = None,
        **kwargs: Any,
    ) -> None:
        if weights.text and not family.has_text_logits:
            raise LossError(
                f"loss.text_weight is {weights.text}, but {family.name} returns no logits over text from its ordinary "
                "forward; leave it at 0"
            )
        self.family = family
        self.weights = weights
        self.write_card = write_card
        self.tokens_per_pack = tokens_per_pack
        self.guard_contract = family.contract
        self.guard_policy = guard_policy
        self.training_totals = LossTotals()
        self.evaluation_totals = LossTotals()
        self.step_utterances: list[str] = []
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.finite_gradients = FiniteGradients(self.accelerator, self.step_utterances)
        self.add_callback(self.finite_gradients)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *device: Any) -> Any:
        """The guard's; with the first step after a log the clock starts: what came between was not training."""
        if not self.training_totals.started:
            self.training_totals.clear()
        return super().get_batch_samples(epoch_iterator, num_batches, *device)

    def count_targets(self, batch_samples: Sequence[Any]) -> Tensor | None:
        """The supervised cells of each codebook, then the supervised text tokens (K + 1,), in the whole optimizer step,
        over all ranks."""
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
        """The loss of one micro-batch, divided by the counts of the whole step, and the model's outputs.

        In training the outputs are None: the gradient is written over their logits.
        """
        if model.training:
            self._note(model_inputs, metadata)
        check_pack(model_inputs)
        outputs = model(**model_inputs)
        aligned = self.family.align(outputs, model_inputs, targets)
        logits_NKC, targets_NK = aligned.audio_logits_NKC, aligned.audio_targets_NK
        counts = num_items_in_batch
        if counts is None:
            counts = self.family.count(model_inputs, targets)
        step_cells_K, step_tokens = counts[:-1], counts[-1]
        if not int(step_cells_K.sum()):
            raise LossError(f"no supervised audio cell in this step: utterances {_names(metadata)}")

        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        totals = self.training_totals if model.training else self.evaluation_totals
        correct = count_correct_first(logits_NKC, targets_NK)
        spend = model.training and torch.is_grad_enabled()
        sums_K = compute_cross_entropy_sums(
            logits_NKC, targets_NK, label_smoothing=smoothing, overwrite=spend
        )
        totals.add(sums_K, count_cells(targets_NK), correct)
        weights = self.weights.list_codebook_weights(len(sums_K))
        loss = self.weights.audio * compute_audio_loss(sums_K, step_cells_K, weights)
        if self.weights.text:
            if aligned.text is None or not int(step_tokens):
                raise LossError(
                    f"loss.text_weight is {self.weights.text}, but no text token of this step is supervised: "
                    f"utterances {_names(metadata)}; set it to 0, or give label_ids"
                )
            text_sum = compute_text_cross_entropy_sum(
                *aligned.text, label_smoothing=smoothing, overwrite=spend
            )
            totals.add_text(text_sum, len(aligned.text.targets_M))
            loss = loss + self.weights.text * text_sum / step_tokens
        if not torch.isfinite(loss):
            raise LossError(
                f"the loss is {loss.item()} at step {self.state.global_step}: utterances {_names(metadata)}"
            )

        if model.training:
            # DDP averages gradients over ranks, but each rank's loss is already a share of the step's.
            loss = loss * self.accelerator.num_processes
        return loss, None if spend else outputs

    def _note(self, model_inputs: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Who is in this step, and how full its batches are."""
        self.step_utterances += metadata.get("utterance_ids", [])
        if "num_tokens" in metadata:
            room = self.tokens_per_pack or model_inputs["input_ids"].numel()
            self.training_totals.add_tokens(sum(metadata["num_tokens"]), room)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """`write_card`'s, where it is given; `push_to_hub` asks for it. Trainer's own draft knows nothing of speech."""
        if self.write_card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.write_card(Path(self.args.output_dir))

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Trainer's (5.x; where it is not asked, the norm is computed once more): the norm before clipping."""
        self.finite_gradients.norm = super()._clip_grad_norm(model)
        return self.finite_gradients.norm

    def log(self, logs: dict[str, float], *start_time: float) -> None:
        """Add the terms of the loss since the last log: each codebook, accuracy of the first, speed."""
        if "loss" in logs:
            logs = {**logs, **self._take("", self.training_totals)}
        super().log(logs, *start_time)  # transformers 4.46 knows no start_time

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's; ``ValueError`` on several processes where the set does not divide by ranks and batch size."""
        self._check_nothing_is_repeated(self.train_dataset, self.args.train_batch_size)
        dataloader: DataLoader[Any] = super().get_train_dataloader()
        return dataloader

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's, with what callbacks do afterwards; its seconds are not training's."""
        started = time.perf_counter()
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self.training_totals.leave_out(time.perf_counter() - started)
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Trainer's loop; its mean of batch means is replaced by the loss over all cells of the set.

        Raises:
            ValueError: on several processes, a set that does not divide by ranks and batch size.
        """
        dataloader = args[0] if args else kwargs["dataloader"]
        self._check_nothing_is_repeated(dataloader.dataset, self.args.eval_batch_size)
        self.evaluation_totals = LossTotals()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval") + "_"
        if output.metrics is not None and self.evaluation_totals.started:
            output.metrics.update(self._take(prefix, self.evaluation_totals))
            audio_loss = output.metrics[f"{prefix}audio_loss"]
            text_loss = output.metrics.get(f"{prefix}text_loss", 0.0)
            output.metrics[f"{prefix}loss"] = self.weights.audio * audio_loss + self.weights.text * text_loss
            if self.is_in_train and self.measure_speech is not None:
                measured = [self.measure_speech() if self.is_world_process_zero() else None]
                (spoken,) = broadcast_object_list(measured)  # every process must choose the same checkpoint
                output.metrics.update({f"{prefix}{name}": value for name, value in spoken.items()})
        return output

    def _check_nothing_is_repeated(self, examples: Any, batch_size: int) -> None:
        ranks = self.accelerator.num_processes
        if ranks > 1 and len(examples) % (ranks * batch_size):
            raise ValueError(
                f"accelerate would repeat examples, so that each of {ranks} processes has equally many batches of "
                f"{batch_size}: give PlannedExamples(examples, BatchPlan(..., num_ranks={ranks})) of dataset/packing.py"
            )

    def _take(self, prefix: str, totals: LossTotals) -> dict[str, float]:
        """The totals over all ranks as metrics; they start again at nothing."""
        reduced = totals.reduce(self.accelerator)
        totals.clear()
        return reduced.metrics(prefix, self.weights.list_codebook_weights(reduced.num_codebooks))


def _names(metadata: Mapping[str, Any]) -> str:
    return ", ".join(map(str, metadata.get("utterance_ids", []))) or "unknown (the batch names none)"
