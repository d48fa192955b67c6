"""Evaluate on a whole set: one loss over all of its cells, not a mean of batch means."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.metrics import LossTotals
from higgs_trainer.training.trainer_base import TrainerBase

if TYPE_CHECKING:
    from higgs_trainer.training.trainer_inputs import BuiltInputs


class WholeSetEvaluation(TrainerBase):
    """Mixin for a Trainer that adds up the terms of its loss: ``class T(WholeSetEvaluation, Trainer)``.

    Attributes:
        built: what the trainer built from its arguments. None: the user built the datasets.
        weights: the weights of the loss's terms.
        training_totals: the sums since the last log.
        evaluation_totals: the sums of the evaluation in progress.
        measure_speech: returns further metrics at a step. Only the main process calls it or, if FSDP has sharded the
            model, every process does.
    """

    built: "BuiltInputs | None"
    weights: LossWeights
    training_totals: LossTotals
    evaluation_totals: LossTotals
    measure_speech: Callable[[int], Mapping[str, float]] | None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and leave the seconds of the evaluation and its callbacks out of the training speed.

        Args:
            eval_dataset: as for the constructor, or the name of one in the dict that the constructor got.
        """
        started = time.perf_counter()
        metrics: dict[str, float] = super().evaluate(self._encode(eval_dataset), *args, **kwargs)
        self.training_totals.leave_out(time.perf_counter() - started)
        return metrics

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict, as Trainer does, for a dataset as the constructor takes it."""
        return super().predict(self._encode(test_dataset), *args, **kwargs)

    def _encode(self, dataset: Any) -> Any:
        is_known = (
            isinstance(dataset, str) and isinstance(self.eval_dataset, dict) and dataset in self.eval_dataset
        )
        return dataset if is_known or self.built is None else self.built.build_evaluation_set(dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run Trainer's loop, and replace its mean of batch means by the loss over all cells of the set.

        Raises:
            ValueError: there are several processes, and the set does not divide by ranks and batch size.
        """
        dataloader = args[0] if args else kwargs["dataloader"]
        check_divides(dataloader.dataset, self.args.eval_batch_size, self.accelerator.num_processes)
        self.evaluation_totals = LossTotals()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval") + "_"
        if output.metrics is not None and self.evaluation_totals.started:
            output.metrics.update(self._compute_metrics(prefix, self.evaluation_totals))
            audio_loss = output.metrics[f"{prefix}audio_loss"]
            text_loss = output.metrics.get(f"{prefix}text_loss", 0.0)
            output.metrics[f"{prefix}loss"] = self.weights.audio * audio_loss + self.weights.text * text_loss
            if self.is_in_train and self.measure_speech is not None:
                step = self.state.global_step
                calls = self.is_world_process_zero() or self.is_fsdp_enabled
                measured = [self.measure_speech(step) if calls else None]
                # Every process must choose the same best checkpoint.
                (speech_metrics,) = broadcast_object_list(measured)
                output.metrics.update({f"{prefix}{name}": value for name, value in speech_metrics.items()})
        return output

    def _compute_metrics(self, prefix: str, totals: LossTotals) -> dict[str, float]:
        """Compute metrics from the totals of all ranks, and clear the totals."""
        reduced = totals.reduce(self.accelerator)
        totals.clear()
        return reduced.compute_metrics(prefix, self.weights.list_codebook_weights(reduced.num_codebooks))


def check_divides(examples: Any, batch_size: int, num_ranks: int) -> None:
    """Check that every rank gets equally many full batches.

    Raises:
        ValueError: accelerate would repeat examples.
    """
    if num_ranks > 1 and len(examples) % (num_ranks * batch_size):
        raise ValueError(
            f"accelerate would repeat examples, so that each of {num_ranks} processes has equally many batches of "
            f"{batch_size}: give PlannedExamples(examples, BatchPlan(..., num_ranks={num_ranks})) of dataset/packing.py"
        )
