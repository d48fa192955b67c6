"""What ``higgs-trainer check`` tests on the user's own data and model; a failure says what it means and what to do."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from higgs_trainer.batch import IGNORED
from higgs_trainer.data.collator import Example
from higgs_trainer.training.losses import count_cells, cross_entropy_sums


@dataclass(frozen=True)
class CheckResult:
    """One check. ``found`` is what was measured; ``remedy`` what a failure means and what to do."""

    name: str
    passed: bool
    found: str
    remedy: str = ""


def check_examples(examples: Iterable[Example], *, end_id: int) -> list[CheckResult]:
    """The layout of every example: end of stream, references, positions."""
    without_end: list[str] = []
    too_early: list[str] = []
    unkept: list[str] = []
    total = 0
    for example in examples:
        total += 1
        targets_PK = example.targets_PK
        if ((targets_PK == end_id).sum(dim=0) != 1).any():
            without_end.append(example.utterance_id)
        supervised_P = (targets_PK != IGNORED).any(dim=1)
        first = int(supervised_P.nonzero()[0]) if supervised_P.any() else len(supervised_P)
        if (
            not supervised_P[first:].all()
            or (example.columns_PK[:first][supervised_P[:first]] != IGNORED).any()
        ):
            too_early.append(example.utterance_id)
        if int(example.keep_T.sum()) != int(supervised_P.sum()):
            unkept.append(example.utterance_id)
    return [
        _listing(
            "end of stream is supervised once a codebook",
            without_end,
            total,
            "the model would never learn to stop; prepare these clips again",
        ),
        _listing(
            "only the last clip is supervised",
            too_early,
            total,
            "a reference or prompt would be learnt by heart; please report these utterances",
        ),
        _listing(
            "logits are kept exactly where a target follows",
            unkept,
            total,
            "targets and predictions would not meet; please report these utterances",
        ),
    ]


@torch.no_grad()
def check_model(trainer: Any, examples: Sequence[Example]) -> list[CheckResult]:
    """The model on one batch: causality, the shift of the targets, and where LoRA reaches."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    results = [_check_causality(trainer, model, examples), _check_shift(trainer, model, examples)]
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    if adapted:
        results.append(
            CheckResult(
                "LoRA reaches the audio FFN",
                any("audio_mlp" in name for name in adapted),
                f"{len(adapted)} LoRA tensors",
                "most of what Higgs Audio knows of sound lies there; use target_modules: attention+audio_ffn",
            )
        )
    model.train(was_training)
    return results


def _prepare(trainer: Any, examples: Sequence[Example]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Model inputs and targets of one batch, on the model's device."""
    prepared = trainer._prepare_inputs(trainer.data_collator(examples))
    return dict(prepared), prepared.targets


def _check_causality(trainer: Any, model: nn.Module, examples: Sequence[Example]) -> CheckResult:
    """Changing the last column may not move any logit before it."""
    inputs, targets = _prepare(trainer, examples[:1])
    before = trainer.family.align(model(**inputs), inputs, targets).audio_logits_NKC
    changed = {**inputs, "audio_input_ids": inputs["audio_input_ids"].clone()}
    changed["audio_input_ids"][:, -1] = (
        changed["audio_input_ids"][:, -1] + 1
    ) % trainer.model.config.codebook_size
    after = trainer.family.align(model(**changed), changed, targets).audio_logits_NKC
    moved = float((before - after)[: len(before) - 1].abs().max())
    return CheckResult(
        "a later frame leaves earlier predictions unchanged",
        moved <= 1e-4 * float(before.abs().max()),
        f"largest change {moved:.1e}",
        "the model sees its own targets; check attn_implementation and any attention mask",
    )


def _check_shift(trainer: Any, model: nn.Module, examples: Sequence[Example]) -> CheckResult:
    """The loss at the right positions against targets moved by one frame, either way."""
    inputs, targets = _prepare(trainer, examples[:1])
    aligned = trainer.family.align(model(**inputs), inputs, targets)
    logits_NKC, targets_NK = aligned.audio_logits_NKC, aligned.audio_targets_NK

    def mean_loss(shift: int) -> float:
        moved_NK = targets_NK.roll(shift, dims=0)
        moved_NK[(targets_NK == IGNORED) | (moved_NK == IGNORED)] = IGNORED
        return float(cross_entropy_sums(logits_NKC, moved_NK).sum() / count_cells(moved_NK).sum())

    here, earlier, later = mean_loss(0), mean_loss(1), mean_loss(-1)
    chance = math.log(logits_NKC.shape[-1])
    untrained = here > 0.95 * chance
    return CheckResult(
        "targets moved by one frame make the loss worse",
        untrained or (here < earlier and here < later),
        f"{here:.3f} against {earlier:.3f} and {later:.3f}"
        + (f"; not judged, the model is near chance ({chance:.3f})" if untrained else ""),
        "the model was trained with another alignment, or is fed another codec's codes",
    )


def _listing(name: str, offenders: Sequence[str], total: int, remedy: str) -> CheckResult:
    shown = ", ".join(offenders[:5]) + (", …" if len(offenders) > 5 else "")
    found = f"{total} clips" if not offenders else f"{len(offenders)} of {total} clips do not: {shown}"
    return CheckResult(name, not offenders and total > 0, found, remedy)
