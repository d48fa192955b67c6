"""What ``higgs-trainer check`` tests on the user's own data and model; a failure says what it means and what to do."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from higgs_trainer.dataset.examples import Example
from higgs_trainer.model.example_encoding import StreamIds
from higgs_trainer.tensors import IGNORED
from higgs_trainer.training.losses import count_cells, cross_entropy_sums
from label_guard import LabelGuard, LabelLeakError


@dataclass(frozen=True)
class CheckResult:
    """One check. ``found`` is what was measured; ``remedy`` what a failure means and what to do."""

    name: str
    passed: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class ExampleCheck:
    """What must hold of every example, and what it means where it does not."""

    name: str
    holds: Callable[[Example, StreamIds], bool]
    remedy: str


def placeholders_equal_columns(example: Example, ids: StreamIds) -> bool:
    """As many audio placeholders among the tokens as columns of codes, so that each column meets its own place."""
    return int(_is_audio(example, ids).sum()) == len(example.columns_PK)


def ends_once(example: Example, ids: StreamIds) -> bool:
    """Each codebook has one supervised end of stream."""
    return bool(((example.targets_PK == ids.end).sum(dim=0) == 1).all())


def supervises_last_clip_alone(example: Example, ids: StreamIds) -> bool:
    """No cell of a clip before the last one is supervised."""
    first, last = _last_clip(example, ids)
    return bool((example.targets_PK[: first - last] == IGNORED).all())


def supervises_no_prompt(example: Example, ids: StreamIds) -> bool:
    """No text token before the last clip is supervised."""
    first, _ = _last_clip(example, ids)
    return bool((example.labels[:first] == IGNORED).all())


def keeps_what_precedes_targets(example: Example, ids: StreamIds) -> bool:
    """Logits are kept at the positions just before supervised columns, and at no other."""
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
        placeholders_equal_columns,
        "codes would stand at wrong places; the tokenizer or chat template is not this model's",
    ),
    ExampleCheck(
        "end of stream is supervised once a codebook",
        ends_once,
        "the model would never learn to stop; prepare these clips again",
    ),
    ExampleCheck(
        "only the last clip is supervised",
        supervises_last_clip_alone,
        "the reference would be learnt by heart; please report these utterances",
    ),
    ExampleCheck(
        "the prompt is not supervised",
        supervises_no_prompt,
        "the text to be spoken would be learnt by heart; please report these utterances",
    ),
    ExampleCheck(
        "logits are kept exactly where a target follows",
        keeps_what_precedes_targets,
        "targets and predictions would not meet; please report these utterances",
    ),
)


def check_examples(examples: Iterable[Example], ids: StreamIds) -> list[CheckResult]:
    """Every check of `EXAMPLE_CHECKS` on every example. Without any example each fails."""
    offenders: dict[str, list[str]] = {check.name: [] for check in EXAMPLE_CHECKS}
    total = 0
    for example in examples:
        total += 1
        for check in EXAMPLE_CHECKS:
            if not check.holds(example, ids):
                offenders[check.name].append(example.utterance_id)
    return [_listing(check.name, offenders[check.name], total, check.remedy) for check in EXAMPLE_CHECKS]


def check_leaks(guard: LabelGuard, stopped_by: LabelLeakError | None = None) -> CheckResult:
    """What the guard saw. A leak fails where it ended the run (policy ``raise``); a diverted one is reported."""
    return CheckResult(
        "nothing but model inputs reaches the model",
        stopped_by is None,
        guard.ledger.verdict() if stopped_by is None else str(stopped_by),
        "mend what put it there, or let the guard divert it: guard.policy: divert",
    )


def _is_audio(example: Example, ids: StreamIds) -> Tensor:
    return (example.input_ids == ids.audio_token) | (example.input_ids == ids.delay_token)


def _last_clip(example: Example, ids: StreamIds) -> tuple[int, int]:
    """The position of the last clip's first placeholder, and the one after its last."""
    is_audio_T = _is_audio(example, ids)
    last = int(is_audio_T.nonzero()[-1]) + 1
    gaps = (~is_audio_T[:last]).nonzero()
    return (int(gaps[-1]) + 1 if len(gaps) else 0), last


@torch.no_grad()
def check_model(trainer: Any, examples: Sequence[Example]) -> list[CheckResult]:
    """The model on one batch: causality, the shift of the targets, packs without leaks, and where LoRA reaches."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    results = [_check_causality(trainer, model, examples), _check_shift(trainer, model, examples)]
    if "position_ids" in _prepare(trainer, examples[:1])[0]:
        results.append(_check_isolation(trainer, model, examples))
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


def _check_isolation(trainer: Any, model: nn.Module, examples: Sequence[Example]) -> CheckResult:
    """The last example of a pack has the logits that it has alone."""

    def logits_NKC(packed: Sequence[Example]) -> Tensor:
        inputs, targets = _prepare(trainer, packed)
        return trainer.family.align(model(**inputs), inputs, targets).audio_logits_NKC

    alone_NKC = logits_NKC(examples[:1])
    behind_NKC = logits_NKC([examples[-1], examples[0]])[-len(alone_NKC) :]
    moved = float((alone_NKC - behind_NKC).abs().max())
    return CheckResult(
        "an example in a pack is predicted as if it were alone",
        moved <= 1e-4 * float(alone_NKC.abs().max()),
        f"largest change {moved:.1e}",
        "examples of a pack see each other; use attn_implementation: packed_sdpa, or data.packing: false",
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
    untrained = min(here, earlier, later) > 0.95 * chance  # a wrongly aligned model is worse than chance
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
