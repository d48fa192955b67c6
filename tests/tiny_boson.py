"""A tiny random ``HiggsAudioModel`` (fully dual-FFN), and conversations of random codes for Boson's own collator."""

from collections.abc import Sequence
from typing import Any

import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioSampleCollator
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel
from torch import Tensor

VOCABULARY, PAD, AUDIO_IN, AUDIO_OUT = 83, 0, 81, 82
NUM_CODES, NUM_CODEBOOKS = 1024, 3
BEGIN, END = 1024, 1025
IGNORED = -100


def make_model(*, hidden_size: int = 60, seed: int = 0) -> HiggsAudioModel:
    torch.manual_seed(seed)
    config = HiggsAudioConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": hidden_size,
            "intermediate_size": 76,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 512,
        },
        audio_adapter_type="dual_ffn",
        audio_dual_ffn_layers=[0, 1],
        encode_whisper_embed=False,
        encode_audio_in_tokens=True,
        skip_audio_tower=True,
        use_delay_pattern=True,
        audio_num_codebooks=NUM_CODEBOOKS,
        audio_codebook_size=NUM_CODES,
        audio_stream_bos_id=BEGIN,
        audio_stream_eos_id=END,
        audio_in_token_idx=AUDIO_IN,
        audio_out_token_idx=AUDIO_OUT,
        pad_token_id=PAD,
    )
    return HiggsAudioModel(config)


def make_collator() -> HiggsAudioSampleCollator:
    """Make Boson's collator. By default it pads batches to a multiple of 8."""
    return HiggsAudioSampleCollator(
        whisper_processor=None,
        audio_in_token_id=AUDIO_IN,
        audio_out_token_id=AUDIO_OUT,
        pad_token_id=PAD,
        audio_stream_bos_id=BEGIN,
        audio_stream_eos_id=END,
        encode_whisper_embed=False,
        return_audio_in_tokens=True,
        audio_num_codebooks=NUM_CODEBOOKS,
        use_delay_pattern=True,
    )


def make_sample(seed: int, *, num_frames: int = 7, ref_frames: int = 0) -> ChatMLDatasetSample:
    """Make a sample: words, optionally a reference clip, the target clip, and three supervised words."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 80, (4 + seed % 3,), generator=generator).tolist()
    before = [*words, *([AUDIO_IN, 5] if ref_frames else []), 6]
    after = torch.randint(1, 80, (3,), generator=generator).tolist()
    clips = [draw_codes(frames, generator) for frames in (ref_frames, num_frames) if frames]
    lengths = torch.tensor([clip_KF.shape[1] for clip_KF in clips])
    return ChatMLDatasetSample(
        input_ids=torch.tensor([*before, AUDIO_OUT, *after]),
        # The placeholder's label tells the collator to train on this clip.
        label_ids=torch.tensor([*[IGNORED] * len(before), AUDIO_OUT, *after]),
        audio_ids_concat=torch.cat(clips, dim=1),
        audio_ids_start=lengths.cumsum(0) - lengths,
        audio_waveforms_concat=torch.zeros(0),
        audio_waveforms_start=torch.zeros(0, dtype=torch.long),
        audio_sample_rate=torch.zeros(0),
        audio_speaker_indices=torch.zeros(0, dtype=torch.long),
    )


def draw_codes(num_frames: int, generator: torch.Generator) -> Tensor:
    return torch.randint(NUM_CODES, (NUM_CODEBOOKS, num_frames), generator=generator)


class FreshSamples(torch.utils.data.Dataset[ChatMLDatasetSample]):
    """Samples of random codes, created at each access, because Boson's collator overwrites their labels."""

    def __init__(self, seeds: Sequence[int], **options: Any) -> None:
        self.seeds, self.options = seeds, options

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> ChatMLDatasetSample:
        return make_sample(self.seeds[index], **self.options)
