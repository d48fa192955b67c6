"""The tests that ``higgs-trainer check`` runs on the user's model, and on what reached it.

Each `CheckResult` of a failed test says what the failure means and what to do.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from higgs_trainer.dataset.examples import Example
from higgs_trainer.model.families import Aligned
from higgs_trainer.tensors import IGNORED
from higgs_trainer.training.check_result import CheckResult
from higgs_trainer.training.losses import compute_cross_entropy_sums, count_cells
from higgs_trainer.training.trainer import HiggsAudioTrainer
from label_guard import LabelGuard, LabelLeakError


def inspect_leaks(guard: LabelGuard, stopped_by: LabelLeakError | None = None) -> CheckResult:
    """Report what the guard saw. It is a failure if a leak stopped the run, not if it was diverted."""
    return CheckResult(
        "nothing but model inputs reaches the model",
        stopped_by is None,
        guard.ledger.verdict() if stopped_by is None else str(stopped_by),
        "fix the code that added it, or let the guard divert it: guard.policy: divert",
    )


@torch.no_grad()
def inspect_model(trainer: HiggsAudioTrainer, examples: Sequence[Example]) -> list[CheckResult]:
    """Test the model on one batch: causality, the shift of the targets, isolation in packs, and the reach of LoRA."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    results = [_inspect_causality(trainer, model, examples), _inspect_shift(trainer, model, examples)]
    if "position_ids" in _prepare(trainer, examples[:1])[0]:
        results.append(_inspect_isolation(trainer, model, examples))
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    audio_ffn = trainer.family.module_kinds.get("audio_ffn")
    if adapted and audio_ffn:
        results.append(
            CheckResult(
                "LoRA reaches the audio FFN",
                any(not audio_ffn.isdisjoint(name.split(".")) for name in adapted),
                f"{len(adapted)} LoRA tensors",
                "most of what Higgs Audio knows about sound is there; set adapter.target_modules: attention+audio_ffn",
            )
        )
    model.train(was_training)
    return results


def _prepare(
    trainer: HiggsAudioTrainer, examples: Sequence[Example]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return model inputs and targets of one batch, on the model's device."""
    batch = trainer.build_batch(examples)
    return dict(batch), batch.targets


def _align(
    trainer: HiggsAudioTrainer, model: nn.Module, inputs: dict[str, Tensor], targets: dict[str, Tensor]
) -> Aligned:
    return trainer.family.align(model(**inputs), inputs, targets)


def _inspect_causality(
    trainer: HiggsAudioTrainer, model: nn.Module, examples: Sequence[Example]
) -> CheckResult:
    """Change the last column and compare the logits before it."""
    inputs, targets = _prepare(trainer, examples[:1])
    before = _align(trainer, model, inputs, targets).audio_logits_NKC
    columns = inputs["audio_input_ids"].clone()
    columns[:, -1] = (columns[:, -1] + 1) % trainer.model.config.codebook_size
    after = _align(trainer, model, {**inputs, "audio_input_ids": columns}, targets).audio_logits_NKC
    change = float((before - after)[: len(before) - 1].abs().max())
    return CheckResult(
        "a later frame leaves earlier predictions unchanged",
        change <= 1e-4 * float(before.abs().max()),
        f"largest change {change:.1e}",
        "the model sees its own targets; check model.attn_implementation and any attention mask",
    )


def _inspect_isolation(
    trainer: HiggsAudioTrainer, model: nn.Module, examples: Sequence[Example]
) -> CheckResult:
    """Change the codes of the first example of a pack and compare the logits of the last one.

    Both packs have the same shape, so the logits agree in any dtype, to the last bit. In float32, the last example is
    also compared with the same example alone. In a shorter dtype, another shape may choose another kernel, and one
    rounding can differ by more than a leak.
    """

    def compute_logits_NKC(inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        return _align(trainer, model, inputs, targets).audio_logits_NKC

    alone, first = _prepare(trainer, examples[:1]), _prepare(trainer, examples[-1:])[0]
    inputs, targets = _prepare(trainer, [examples[-1], examples[0]])
    alone_NKC = compute_logits_NKC(*alone)
    packed_NKC = compute_logits_NKC(inputs, targets)[-len(alone_NKC) :]
    columns, of_first = inputs["audio_input_ids"].clone(), slice(first["audio_input_ids"].shape[1])
    columns[:, of_first] = (columns[:, of_first] + 1) % trainer.model.config.codebook_size
    changed_NKC = compute_logits_NKC({**inputs, "audio_input_ids": columns}, targets)[-len(alone_NKC) :]
    change = float((packed_NKC - changed_NKC).abs().max())
    if _computes_in_float32(trainer, model):
        change = max(change, float((packed_NKC - alone_NKC).abs().max()))
    return CheckResult(
        "an example in a pack is predicted as if it were alone",
        change <= 1e-4 * float(alone_NKC.abs().max()),
        f"largest change {change:.1e}",
        "examples of a pack attend to each other; set model.attn_implementation: packed_sdpa, or data.packing: false",
    )


def _computes_in_float32(trainer: HiggsAudioTrainer, model: nn.Module) -> bool:
    is_mixed = trainer.args.bf16 or trainer.args.fp16
    return not is_mixed and all(weight.dtype == torch.float32 for weight in model.parameters())


def _inspect_shift(trainer: HiggsAudioTrainer, model: nn.Module, examples: Sequence[Example]) -> CheckResult:
    """Compare the loss with the loss against targets that are one frame too early or too late."""
    inputs, targets = _prepare(trainer, examples[:1])
    aligned = _align(trainer, model, inputs, targets)
    logits_NKC, targets_NK = aligned.audio_logits_NKC, aligned.audio_targets_NK

    def compute_mean_loss(shift: int) -> float:
        moved_NK = targets_NK.roll(shift, dims=0)
        moved_NK[(targets_NK == IGNORED) | (moved_NK == IGNORED)] = IGNORED
        return float(compute_cross_entropy_sums(logits_NKC, moved_NK).sum() / count_cells(moved_NK).sum())

    here, earlier, later = compute_mean_loss(0), compute_mean_loss(1), compute_mean_loss(-1)
    chance = math.log(logits_NKC.shape[-1])
    # A trained model whose alignment is wrong has a loss above chance at one of the three shifts.
    is_untrained = min(here, earlier, later) > 0.95 * chance
    return CheckResult(
        "targets moved by one frame make the loss worse",
        is_untrained or (here < earlier and here < later),
        f"{here:.3f} against {earlier:.3f} and {later:.3f}"
        + (f"; not judged, the model is near chance ({chance:.3f})" if is_untrained else ""),
        "the model was trained with another alignment, or another codec made the codes; prepare the data with --model",
    )
