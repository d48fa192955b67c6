"""The tests that ``higgs-trainer check`` runs on the user's examples.

Each `CheckResult` of a failed test says what the failure means and what to do.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from higgs_trainer.dataset.examples import Example
from higgs_trainer.errors import list_first
from higgs_trainer.model.families import StreamIds
from higgs_trainer.tensors import IGNORED
from higgs_trainer.training.check_result import CheckResult


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
