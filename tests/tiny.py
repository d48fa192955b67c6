"""Tiny random models, codecs and rows for unit tests. Sizes are odd and pairwise different."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    HiggsAudioV2ForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from higgs_trainer.dataset.examples import ExampleDataset, Rows
from higgs_trainer.demo.blank_model import build_config, build_tokenizer
from higgs_trainer.model.example_encoding import build_examples
from higgs_trainer.model.loading import Checkpoint

NUM_CODES = 13
NUM_CODEBOOKS = 8
WORDS = "zero one two three four five six seven eight nine".split()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer([" ".join(WORDS)] * 20, vocab_size=300)


def tiny_checkpoint(
    *,
    hidden_size: int = 32,
    num_layers: int = 2,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **sizes: Any,
) -> Checkpoint:
    tokenizer = tokenizer or tiny_tokenizer()
    config = build_config(
        tokenizer,
        num_codebooks=NUM_CODEBOOKS,
        codebook_size=NUM_CODES,
        hidden_size=hidden_size,
        intermediate_size=48,
        num_layers=num_layers,
        num_heads=2,
        max_positions=512,
        **sizes,
    )
    torch.manual_seed(seed)
    return Checkpoint("tiny", HiggsAudioV2ForConditionalGeneration(config), tokenizer)


def talkative_checkpoint(*, end_logit: float = 0.0, seed: int = 0) -> Checkpoint:
    """Build random weights that never draw begin of stream in a clip, and whose likeliest code changes by column.

    ``end_logit``: of end of stream; the codes' logits are some ten to either side of 0.
    """
    checkpoint = tiny_checkpoint(seed=seed)
    head_KCD = checkpoint.model.audio_lm_head.weight.data.view(NUM_CODEBOOKS, NUM_CODES + 2, -1)
    head_KCD *= 40
    head_KCD[..., 0] = 0.0
    head_KCD[:, NUM_CODES:] = 0.0
    head_KCD[:, NUM_CODES, 0], head_KCD[:, NUM_CODES + 1, 0] = -1e4, end_logit

    def set_first_to_one(module: torch.nn.Module, args: Any, hidden_BTD: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(hidden_BTD[..., :1]), hidden_BTD[..., 1:]], dim=-1)

    checkpoint.model.model.norm.register_forward_hook(set_first_to_one)
    return checkpoint


class ToneCodec:
    """A codec whose frames decode to the constant of their first code, and that encodes every frame as 7."""

    name, revision, fingerprint = "tone", None, "f"
    sample_rate_hz, frames_per_second, num_codebooks, codebook_size = 24_000, 25.0, NUM_CODEBOOKS, NUM_CODES

    def encode(self, waveform_S: Tensor) -> Tensor:
        return torch.full((len(waveform_S) // 960, NUM_CODEBOOKS), 7)

    def encode_batch(self, waveforms: list[Tensor]) -> list[Tensor]:
        return [self.encode(waveform_S) for waveform_S in waveforms]

    def decode(self, codes_FK: Tensor) -> Tensor:
        return (codes_FK[:, :1] / 16.0).expand(-1, 960).flatten()


def encode_rows(rows: Rows, checkpoint: Checkpoint) -> ExampleDataset:
    """Encode prepared rows for a checkpoint."""
    return build_examples(rows, checkpoint.tokenizer, checkpoint.stream_ids, checkpoint.sequence)


def draw_codes(num_frames: int, seed: int) -> Tensor:
    return torch.randint(
        NUM_CODES, (num_frames, NUM_CODEBOOKS), generator=torch.Generator().manual_seed(seed)
    )


def make_row(
    seed: int, *, num_frames: int = 5, text: str | None = None, ref_frames: int = 0
) -> dict[str, Any]:
    """Build a prepared row of random codes, as `read_prepared` returns it."""
    return {
        "utterance_id": f"clip-{seed}",
        "text": text or " ".join(WORDS[(seed + i) % 10] for i in range(1 + seed % 4)),
        "scene": None,
        "task": "zero_shot_cloning" if ref_frames else "single_speaker",
        "codes_FK": draw_codes(num_frames, seed),
        "num_references": 1 if ref_frames else 0,
        "context_texts": ["nine nine"] if ref_frames else [],
        "context_codes": [draw_codes(ref_frames, seed + 1000)] if ref_frames else [],
        "duration_seconds": num_frames / 25,
        "reward": None,
    }
