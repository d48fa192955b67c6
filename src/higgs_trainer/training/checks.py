"""The tests that ``higgs-trainer check`` runs on the user's own data and model.

Each `CheckResult` of a failed test says what the failure means and what to do.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from higgs_trainer.dataset.examples import Example
from higgs_trainer.errors import list_first
from higgs_trainer.model.families import Aligned, StreamIds
from higgs_trainer.tensors import IGNORED
from higgs_trainer.training.losses import compute_cross_entropy_sums, count_cells
from label_guard import LabelGuard, LabelLeakError


@dataclass(frozen=True)
class CheckResult:
    """The result of one test: what was measured (``found``), and what a failure means and what to do (``remedy``)."""

    name: str
    passed: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class ExampleCheck:
    """A condition that every example must satisfy, and what it means if one does not."""

    name: str
    holds: Callable[[Example, StreamIds], bool]
    remedy: str


def has_a_placeholder_per_column(example: Example, ids: StreamIds) -> bool:
    """Whether there are as many audio placeholders among the tokens as columns of codes."""
    return int(_is_audio(example, ids).sum()) == len(example.columns_PK)


def ends_once(example: Example, ids: StreamIds) -> bool:
    """Whether each codebook has exactly one supervised end of stream."""
    return bool(((example.targets_PK == ids.end).sum(dim=0) == 1).all())


def supervises_last_clip_only(example: Example, ids: StreamIds) -> bool:
    """Whether no cell of a clip before the last one is supervised."""
    first, end = _find_last_clip(example, ids)
    return bool((example.targets_PK[: first - end] == IGNORED).all())


def keeps_positions_before_targets(example: Example, ids: StreamIds) -> bool:
    """Whether logits are kept at the positions just before supervised columns and at no other position."""
    supervised_T = torch.zeros(len(example.input_ids) + 1, dtype=torch.bool)
    positions = _is_audio(example, ids).nonzero()[:, 0]
    supervised_P = (example.targets_PK != IGNORED).any(dim=1)
    if len(positions) != len(supervised_P):
        return False
    supervised_T[positions] = supervised_P
    return torch.equal(supervised_T[1:], example.keep_T)


EXAMPLE_CHECKS = (
    ExampleCheck(
        "each clip has its placeholders",
        has_a_placeholder_per_column,
        "codes would be read at wrong positions; use the tokenizer and the chat template of this model",
    ),
    ExampleCheck(
        "end of stream is supervised once a codebook",
        ends_once,
        "the model would never learn to stop; prepare these clips again",
    ),
    ExampleCheck(
        "only the last clip is supervised",
        supervises_last_clip_only,
        "the model would memorize the reference; please report these utterances",
    ),
    ExampleCheck(
        "logits are kept exactly where a target follows",
        keeps_positions_before_targets,
        "predictions would be compared with the wrong targets; please report these utterances",
    ),
)


def inspect_examples(examples: Iterable[Example], ids: StreamIds) -> list[CheckResult]:
    """Run every check of `EXAMPLE_CHECKS` on every example. Without examples, every check fails."""
    offenders: dict[str, list[str]] = {check.name: [] for check in EXAMPLE_CHECKS}
    total = 0
    for example in examples:
        total += 1
        for check in EXAMPLE_CHECKS:
            if not check.holds(example, ids):
                offenders[check.name].append(example.utterance_id)
    return [_build_result(check, offenders[check.name], total) for check in EXAMPLE_CHECKS]


def inspect_leaks(guard: LabelGuard, stopped_by: LabelLeakError | None = None) -> CheckResult:
    """Report what the guard saw. It is a failure if a leak stopped the run, not if it was diverted."""
    return CheckResult(
        "nothing but model inputs reaches the model",
        stopped_by is None,
        guard.ledger.verdict() if stopped_by is None else str(stopped_by),
        "fix the code that added it, or let the guard divert it: guard.policy: divert",
    )


@torch.no_grad()
def inspect_model(trainer: Any, examples: Sequence[Example]) -> list[CheckResult]:
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


def _is_audio(example: Example, ids: StreamIds) -> Tensor:
    return (example.input_ids == ids.audio_token) | (example.input_ids == ids.delay_token)


def _find_last_clip(example: Example, ids: StreamIds) -> tuple[int, int]:
    """Return the position of the last clip's first placeholder, and the position after its last one."""
    is_audio_T = _is_audio(example, ids)
    end = int(is_audio_T.nonzero()[-1]) + 1
    gaps = (~is_audio_T[:end]).nonzero()
    return (int(gaps[-1]) + 1 if len(gaps) else 0), end


def _build_result(check: ExampleCheck, offenders: Sequence[str], total: int) -> CheckResult:
    found = (
        f"{total} clips"
        if not offenders
        else f"{len(offenders)} of {total} clips fail: {list_first(offenders)}"
    )
    return CheckResult(check.name, not offenders and total > 0, found, check.remedy)


def _prepare(trainer: Any, examples: Sequence[Example]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return model inputs and targets of one batch, on the model's device."""
    prepared = trainer._prepare_inputs(trainer.data_collator(examples))
    return dict(prepared), prepared.targets


def _align(trainer: Any, model: nn.Module, inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Aligned:
    aligned: Aligned = trainer.family.align(model(**inputs), inputs, targets)
    return aligned


def _inspect_causality(trainer: Any, model: nn.Module, examples: Sequence[Example]) -> CheckResult:
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


def _inspect_isolation(trainer: Any, model: nn.Module, examples: Sequence[Example]) -> CheckResult:
    """Compare the logits of the last example of a pack with those of the same example alone."""

    def compute_logits_NKC(packed: Sequence[Example]) -> Tensor:
        return _align(trainer, model, *_prepare(trainer, packed)).audio_logits_NKC

    alone_NKC = compute_logits_NKC(examples[:1])
    packed_NKC = compute_logits_NKC([examples[-1], examples[0]])[-len(alone_NKC) :]
    change = float((alone_NKC - packed_NKC).abs().max())
    return CheckResult(
        "an example in a pack is predicted as if it were alone",
        change <= 1e-4 * float(alone_NKC.abs().max()),
        f"largest change {change:.1e}",
        "examples of a pack attend to each other; set model.attn_implementation: packed_sdpa, or data.packing: false",
    )


def _inspect_shift(trainer: Any, model: nn.Module, examples: Sequence[Example]) -> CheckResult:
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
