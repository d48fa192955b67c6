"""Four ways to train one model on the same clips, each in a Hugging Face ``Trainer``: what `training_step.py` times.

ours        this package: packs, heads where a target is, one loss over the step
native      transformers' own model and loss, audio labels alone, padded random batches
by_length   the same in the order of transformers' length grouping
community   as the community's trainers for Higgs Audio do: logits over text and codes everywhere, a loop over codebooks
            with boolean masks, padding, random batches
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from higgs_trainer.dataset.collator import Example, PackingCollator
from higgs_trainer.dataset.packing import PackPlan, PlannedExamples
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.attention import PACKED_SDPA
from higgs_trainer.model.delay_pattern import apply_delay, build_targets
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.model.indexed_layers import index_layers
from higgs_trainer.tensors import IGNORED
from higgs_trainer.training.trainer import HiggsAudioTrainer

NUM_CODEBOOKS, NUM_CODES = 8, 1024
BEGIN, END = NUM_CODES, NUM_CODES + 1
AUDIO_TOKEN, DELAY_TOKEN, PAD_TOKEN = 1, 2, 0
FIRST_WORD = 10
# System message, headers and the tokens around the clip.
PROMPT_TOKENS = 25
# About 14 characters of speech per second, 4 to a token.
TOKENS_PER_SECOND = 3.5
BATCH_SIZE = 8
# transformers' length grouping sorts 50 batches at a time.
GROUP_CLIPS = 400


@dataclass(frozen=True)
class Size:
    """The sizes of a model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int


def draw_examples(num_batches: int, size: Size, *, seed: int) -> list[Example]:
    """Clips of random codes whose lengths are those of speech: lognormal around 5.5 s, from 2 to 15 s.

    They are evenly spaced batches of 400 clips that were sorted by length: few clips, in which grouping by length finds
    what it would find in many.
    """
    generator = np.random.default_rng(seed)
    seconds = generator.lognormal(np.log(5.5), 0.5, size=2 * GROUP_CLIPS)
    seconds = np.sort(seconds[(seconds >= 2) & (seconds <= 15)][:GROUP_CLIPS]).reshape(-1, BATCH_SIZE)
    chosen = np.linspace(0, len(seconds) - 1, 2 * num_batches + 1).astype(int)[1::2]
    return [_draw_example(f"clip-{i}", s, size, generator) for i, s in enumerate(seconds[chosen].flatten())]


def _draw_example(name: str, seconds: float, size: Size, generator: np.random.Generator) -> Example:
    codes_FK = torch.from_numpy(generator.integers(NUM_CODES, size=(int(seconds * 25), NUM_CODEBOOKS)))
    columns_PK = apply_delay(codes_FK, begin_id=BEGIN, end_id=END)
    words = generator.integers(
        FIRST_WORD, size.vocabulary, size=PROMPT_TOKENS + int(seconds * TOKENS_PER_SECOND)
    )
    clip = [AUDIO_TOKEN] * (len(codes_FK) + 1) + [DELAY_TOKEN] * NUM_CODEBOOKS
    input_ids = torch.tensor([*words[:-2], *clip, *words[-2:]])
    targets_PK = build_targets(codes_FK, end_id=END)
    keep_T = torch.zeros_like(input_ids, dtype=torch.bool)
    first_column = len(words) - 2
    # Every column but the first is predicted.
    keep_T[first_column : first_column + len(columns_PK) - 1] = True
    return Example(input_ids, columns_PK, targets_PK, keep_T, name)


def build_model(size: Size, *, text_head: bool = False) -> HiggsAudioV2ForConditionalGeneration:
    """The native class with random weights."""
    torch.manual_seed(0)
    config = HiggsAudioV2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=size.hidden // size.heads,
        num_codebooks=NUM_CODEBOOKS,
        codebook_size=NUM_CODES + 2,
        audio_stream_bos_id=BEGIN,
        audio_stream_eos_id=END,
        audio_token_id=AUDIO_TOKEN,
        audio_delay_token_id=DELAY_TOKEN,
        pad_token_id=PAD_TOKEN,
    )
    return HiggsAudioV2ForConditionalGeneration(config, use_text_head=text_head)


@dataclass
class Seen:
    """What an arm's collator was given: the clips, and the supervised cells of the batches that it made."""

    clips: list[str]
    cells: int = 0
    # Of the batches, including padding.
    positions: int = 0
    # Of the clips.
    tokens: int = 0

    def note(self, examples: Sequence[Example], batch: dict[str, Tensor]) -> None:
        """Count one batch."""
        self.clips += [example.utterance_id for example in examples]
        self.cells += int((batch["audio_labels"] != IGNORED).sum())
        self.positions += batch["input_ids"].numel()
        self.tokens += sum(len(example.input_ids) for example in examples)


@dataclass(frozen=True)
class Arm:
    """A way to train: which model it needs, and the Trainer that it makes of model, clips and arguments."""

    name: str
    text_head: bool
    build: Callable[[nn.Module, list[Example], TrainingArguments, Seen], Trainer]


# Ours


def plan_packs(examples: Sequence[Example]) -> PackPlan:
    """Plan as many steps as the other arms have batches, one pack each."""
    lengths = [len(example.input_ids) for example in examples]
    num_packs = -(-len(examples) // BATCH_SIZE)
    tokens = max(max(lengths), sum(lengths) // num_packs)
    while len(plan := PackPlan(lengths, tokens_per_pack=tokens, seed=0)) > num_packs:
        tokens += 8
    return plan


def build_ours(
    model: nn.Module, examples: list[Example], arguments: TrainingArguments, seen: Seen
) -> Trainer:
    """Build a `HiggsAudioTrainer` that trains one pack per step."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation(PACKED_SDPA)
    index_layers(model)
    collate = PackingCollator(NUM_CODEBOOKS)

    def collate_and_note(items: list[tuple[Example, ...]]) -> dict[str, Any]:
        batch = collate(items)
        seen.note([example for item in items for example in item], batch)
        return batch

    arguments.per_device_train_batch_size = 1
    arguments.train_sampling_strategy = "sequential"
    return HiggsAudioTrainer(
        model=model,
        args=arguments,
        train_dataset=PlannedExamples(examples, plan_packs(examples)),
        data_collator=collate_and_note,
        family=HIGGS_AUDIO_V2,
    )


# Transformers' own


@dataclass(frozen=True)
class NativeCollator:
    """Padded as transformers' processor pads, attention mask and all (at the right, where it is right for training)."""

    examples: dict[int, Example]
    seen: Seen
    text_labels: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        examples = [self.examples[id(row["input_ids"])] for row in rows]
        lengths = torch.tensor([len(example.input_ids) for example in examples])
        columns_P = torch.tensor([len(example.columns_PK) for example in examples])
        batch = {
            "input_ids": _pad([example.input_ids for example in examples], PAD_TOKEN),
            "attention_mask": (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long(),
            "audio_input_ids": _pad([example.columns_PK for example in examples], END),
            "audio_input_ids_mask": torch.arange(int(columns_P.max()))[None] < columns_P[:, None],
            "audio_labels": _pad([example.targets_PK for example in examples], IGNORED),
        }
        if self.text_labels:
            labels = [torch.full_like(example.input_ids, IGNORED) for example in examples]
            for labels_T, example in zip(labels, examples, strict=True):
                labels_T[-2:] = example.input_ids[-2:]
            batch["labels"] = _pad(labels, IGNORED)
        self.seen.note(examples, batch)
        return batch


def build_native(
    model: nn.Module, examples: list[Example], arguments: TrainingArguments, seen: Seen
) -> Trainer:
    """HF Trainer with the loss that the model returns."""
    rows, collate = _as_rows(examples, seen)
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)


def build_by_length(
    model: nn.Module, examples: list[Example], arguments: TrainingArguments, seen: Seen
) -> Trainer:
    """The same, clips of like lengths together. transformers' sampler divides so few clips into smaller groups than it
    takes from a corpus, so its function is asked for one group of all."""
    lengths = [len(example.input_ids) for example in examples]
    generator = torch.Generator().manual_seed(arguments.seed)
    order = get_length_grouped_indices(lengths, BATCH_SIZE, len(examples) // BATCH_SIZE, generator)
    arguments.train_sampling_strategy = "sequential"
    return build_native(model, [examples[i] for i in order], arguments, seen)


def _as_rows(examples: list[Example], seen: Seen, **options: Any) -> tuple[Any, NativeCollator]:
    """What the collator finds the clips by, as rows with named fields."""
    rows = [{"input_ids": example.input_ids} for example in examples]
    return rows, NativeCollator({id(e.input_ids): e for e in examples}, seen, **options)


# The community's


class CommunityTrainer(Trainer):
    """Both heads over every position, then what has a label is picked out, codebook by codebook."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels_BT, audio_labels_BPK = inputs.pop("labels"), inputs.pop("audio_labels")
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden_BTD = base.model(**inputs).last_hidden_state
        text_logits_BTV = base.text_lm_head(hidden_BTD)
        audio_logits_BTKC = base.audio_lm_head(hidden_BTD).unflatten(-1, (NUM_CODEBOOKS, -1))

        text_loss = F.cross_entropy(
            text_logits_BTV[:, :-1].reshape(-1, text_logits_BTV.shape[-1]),
            labels_BT[:, 1:].reshape(-1),
            ignore_index=IGNORED,
        )
        is_column_BT = (inputs["input_ids"] == AUDIO_TOKEN) | (inputs["input_ids"] == DELAY_TOKEN)
        labels_BTK = labels_BT.new_full((*labels_BT.shape, NUM_CODEBOOKS), IGNORED)
        labels_BTK[is_column_BT] = audio_labels_BPK[inputs["audio_input_ids_mask"]]
        losses = []
        for k in range(NUM_CODEBOOKS):
            logits_BTC, targets_BT = audio_logits_BTKC[:, :-1, k], labels_BTK[:, 1:, k]
            mask_BT = targets_BT != IGNORED
            losses.append(F.cross_entropy(logits_BTC[mask_BT], targets_BT[mask_BT]))
        return text_loss + torch.stack(losses).mean()


def build_community(
    model: nn.Module, examples: list[Example], arguments: TrainingArguments, seen: Seen
) -> Trainer:
    """A Trainer with a loss of its own."""
    rows, collate = _as_rows(examples, seen, text_labels=True)
    return CommunityTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)


ARMS = (
    Arm("ours", False, build_ours),
    Arm("native", False, build_native),
    Arm("by_length", False, build_by_length),
    Arm("community", True, build_community),
)


def adapt(model: nn.Module) -> nn.Module:
    """The default LoRA preset."""
    return add_lora(model, HIGGS_AUDIO_V2, r=16, lora_alpha=32, target_modules="attention+audio_ffn")


def _pad(tensors: list[Tensor], value: int) -> Tensor:
    return pad_sequence(tensors, batch_first=True, padding_value=value)
