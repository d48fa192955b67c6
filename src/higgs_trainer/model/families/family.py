"""`Family`: everything that the rest of the package must know about one kind of model.

Each family is one file in this folder and one row of the table in ``__init__.py``. No other code asks which family a
model is of: it calls what the family's row holds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from higgs_trainer.dataset.context import Context
from label_guard import Contract

Tensors = Mapping[str, Tensor]

METADATA = frozenset({"utterance_ids", "rewards", "num_tokens"})
"""Keys of our own batches that neither the model nor the loss reads."""


class AlignedText(NamedTuple):
    """Logits and targets of M supervised text tokens."""

    logits_MV: Tensor
    targets_M: Tensor


@dataclass(frozen=True)
class Aligned:
    """Logits next to the targets that they predict, row by row.

    ``text`` is None if the model returns no logits over text or the batch has no text labels.
    """

    audio_logits_NKC: Tensor
    audio_targets_NK: Tensor
    text: AlignedText | None = None


@dataclass(frozen=True)
class StreamIds:
    """The ids of one checkpoint: its audio placeholders, its stream tokens, and its number of codebooks."""

    audio_token: int
    delay_token: int
    begin: int
    end: int
    num_codebooks: int


class EncodePrompt(Protocol):
    """Encode everything up to the position where generation begins, as token ids (T,)."""

    def __call__(
        self, tokenizer: PreTrainedTokenizerBase, text: str, context: Context, *, num_codebooks: int
    ) -> Tensor: ...


class EncodeConversation(Protocol):
    """Encode the prompt and the placeholders of a target clip of ``target_frames`` frames, as token ids (T,)."""

    def __call__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        context: Context,
        target_frames: int,
        *,
        num_codebooks: int,
    ) -> Tensor: ...


class ApplyDelay(Protocol):
    """Delay codes (F, K) to columns (P, K)."""

    def __call__(self, codes_FK: Tensor, *, begin_id: int, end_id: int) -> Tensor: ...


class BuildTargets(Protocol):
    """Build the targets (P, K) of the columns of a clip with codes (F, K)."""

    def __call__(self, codes_FK: Tensor, *, end_id: int) -> Tensor: ...


class RevertDelay(Protocol):
    """Revert generated columns (P, K) to codes (F, K)."""

    def __call__(self, columns_PK: Tensor, *, codebook_size: int) -> Tensor: ...


@dataclass(frozen=True)
class SequenceFormat:
    """How a family lays out a conversation and its clips in a sequence, and when a generated clip ends.

    Attributes:
        read_ids: reads the ids of a checkpoint from its configuration.
        build_stream_rule: builds the logits processor that decides where stream tokens may be, from the ids and the
            text token that follows a finished clip.
    """

    read_ids: Callable[[Any], StreamIds]
    encode_prompt: EncodePrompt
    encode_conversation: EncodeConversation
    apply_delay: ApplyDelay
    build_targets: BuildTargets
    revert_delay: RevertDelay
    build_stream_rule: Callable[[StreamIds, int], LogitsProcessor]


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        name: the name in messages and documentation.
        model_type: the ``model_type`` in the configuration of its checkpoints.
        contract: the keys that ``forward`` takes, and those for the loss.
        align: puts the outputs of the model next to the targets that they predict, from outputs, model inputs and
            targets.
        count: counts the targets in a batch (K + 1,), from model inputs and targets: the supervised cells of each
            codebook, then the supervised text tokens.
        has_text_logits: whether the ordinary ``forward`` returns logits over text.
        module_kinds: kind of module -> names of its modules. A parameter is of a kind if its path has such a name.
        lora_presets: name -> module names for PEFT.
        sequence: the format of its sequences. None if its batches come from the collator of another project.
        import_model_class: imports the class to load checkpoints with. None if this package does not load them.
    """

    name: str
    model_type: str
    contract: Contract
    align: Callable[[Any, Tensors, Tensors], Aligned]
    count: Callable[[Tensors, Tensors], Tensor]
    has_text_logits: bool
    module_kinds: Mapping[str, frozenset[str]]
    lora_presets: Mapping[str, tuple[str, ...]]
    sequence: SequenceFormat | None = None
    import_model_class: Callable[[], type[PreTrainedModel]] | None = None


def get_target(targets: Tensors, key: str) -> Tensor:
    """Return a target of a batch. Raises ``ValueError`` if it is missing."""
    if key not in targets:
        raise ValueError(f"the batch has no {key}, so there is nothing to compute a loss from")
    return targets[key]
