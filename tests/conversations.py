"""One conversation for each task, and what transformers' own processor makes of it.

The text and what stands before it; the clips' codes are drawn by their length.
"""

from importlib.resources import as_file, files
from typing import Any

import torch
from transformers import AutoTokenizer, DacConfig, DacFeatureExtractor, DacModel, HiggsAudioV2Processor
from transformers.models.dac.modeling_dac import DacEncoderOutput

from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.model.prompt import Message
from tiny import NUM_CODEBOOKS, NUM_CODES, draw_codes

SCENE = "Audio is recorded from a quiet room."
DIALOGUE = "[SPEAKER0] seven two\n[SPEAKER1] four"
TARGET_FRAMES = 11
FIRST, SECOND = (PromptClip(text, draw_codes(F, seed=F)) for text, F in (("nine one", 5), ("six", 3)))

TASKS: dict[str, tuple[str, Context]] = {
    "single speaker": ("seven two", Context()),
    "scene": ("seven two", Context(scene=SCENE)),
    "multi-speaker": (DIALOGUE, Context()),
    "multi-speaker in a scene": (
        DIALOGUE,
        Context(scene=f"{SCENE}\n\nSPEAKER0: feminine\nSPEAKER1: masculine"),
    ),
    "zero-shot cloning": ("seven two", Context(references=(FIRST,))),
    "zero-shot cloning in a scene": ("seven two", Context(SCENE, (FIRST,))),
    "multi-speaker cloning": (DIALOGUE, Context(SCENE, (FIRST, SECOND))),
    "reference in the system message": ("seven two", Context(SCENE, (FIRST,), references_in_system=True)),
    "references in the system message": (
        DIALOGUE,
        Context(SCENE, (FIRST, SECOND), references_in_system=True),
    ),
    "several turns": ("seven two", Context(turns=(FIRST, SECOND))),
    "several turns with a reference in the system message": (
        "[SPEAKER0] seven two",
        Context(SCENE, (FIRST,), (SECOND,), references_in_system=True),
    ),
}

FRAMES_OF_SAMPLES = {1200: 3, 2400: 5, 4800: 11}


class CountingCodec(DacModel):
    """Stands in for the audio tokenizer, whose class the processor checks: known codes for each length of waveform."""

    def __init__(self):
        super().__init__(
            DacConfig(
                encoder_hidden_size=4, decoder_hidden_size=8, downsampling_ratios=[2], upsampling_ratios=[2]
            )
        )
        self.config.num_quantizers = NUM_CODEBOOKS

    def encode(self, input_values, **kwargs):
        num_frames = FRAMES_OF_SAMPLES[input_values.shape[-1]]
        return DacEncoderOutput(audio_codes=draw_codes(num_frames, seed=num_frames).T[None])


def demo_tokenizer():
    """The tokenizer of the packaged demo model, with its chat template."""
    with as_file(files("higgs_trainer_demo") / "base") as base:
        return AutoTokenizer.from_pretrained(str(base))


def build_processor(tokenizer, codec, *, chat_template: str) -> HiggsAudioV2Processor:
    return HiggsAudioV2Processor(
        feature_extractor=DacFeatureExtractor(feature_size=1, sampling_rate=24_000, hop_length=1),
        tokenizer=tokenizer,
        audio_tokenizer=codec,
        chat_template=chat_template,
        audio_stream_bos_id=NUM_CODES,
        audio_stream_eos_id=NUM_CODES + 1,
    )


def process(processor, messages: list[Message], frames: list[int], **options: Any) -> dict[str, Any]:
    """What the processor makes of the conversation, with a waveform for each of its clips."""
    samples_of = {F: S for S, F in FRAMES_OF_SAMPLES.items()}
    waveforms = iter(torch.zeros(samples_of[F]).numpy() for F in frames)
    filled = [
        message | {"content": [fill_clip(part, waveforms) for part in message["content"]]}
        for message in messages
    ]
    return processor.apply_chat_template(
        filled, tokenize=True, return_dict=True, return_tensors="pt", sampling_rate=24_000, **options
    )


def fill_clip(part: dict[str, Any], waveforms) -> dict[str, Any]:
    return part | {"audio": next(waveforms)} if part["type"] == "audio" else part
