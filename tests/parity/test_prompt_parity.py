"""Our token sequences against those of transformers' own processor and chat template, token for token."""

import pytest
import torch
from transformers import DacConfig, DacFeatureExtractor, DacModel, HiggsAudioV2Processor
from transformers.models.dac.modeling_dac import DacEncoderOutput

from higgs_trainer.data.delay_pattern import apply_delay
from higgs_trainer.data.prompt import build_messages, encode_conversation, encode_prompt
from higgs_trainer.errors import UserError
from tiny import NUM_CODEBOOKS, NUM_CODES, draw_codes, tiny_tokenizer

BEGIN, END = NUM_CODES, NUM_CODES + 1
FRAMES_OF_SAMPLES = {2400: 5, 4800: 11}


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


@pytest.fixture(scope="module")
def processor():
    tokenizer = tiny_tokenizer()
    return HiggsAudioV2Processor(
        feature_extractor=DacFeatureExtractor(feature_size=1, sampling_rate=24_000, hop_length=1),
        tokenizer=tokenizer,
        audio_tokenizer=CountingCodec(),
        chat_template=tokenizer.chat_template,
        audio_stream_bos_id=BEGIN,
        audio_stream_eos_id=END,
    )


def processed(processor, messages, samples, **kwargs):
    """What the processor makes of the conversation, with a waveform in each assistant turn."""
    lengths = iter(samples)
    filled = [
        {**m, "content": [{"type": "audio", "audio": torch.zeros(next(lengths)).numpy()}]}
        if m["role"] == "assistant"
        else m
        for m in messages
    ]
    return processor.apply_chat_template(
        filled, tokenize=True, return_dict=True, return_tensors="pt", sampling_rate=24_000, **kwargs
    )


AUDIO = {"role": "assistant", "content": [{"type": "audio"}]}
CASES = {
    "single speaker": ({}, []),
    "scene": ({"scene": "A quiet room."}, []),
    "zero-shot cloning": ({"ref_text": "nine one"}, [2400]),
    "cloning in a scene": ({"ref_text": "nine one", "scene": "A hall."}, [2400]),
}


@pytest.mark.parametrize("case", CASES)
def test_training_reads_what_the_processor_builds(processor, case):
    parts, ref_samples = CASES[case]
    messages = build_messages("seven two", **parts)
    samples = [*ref_samples, 4800]
    expected = processed(processor, [*messages, AUDIO], samples)
    frames = [FRAMES_OF_SAMPLES[s] for s in samples]
    ours = encode_conversation(processor.tokenizer, messages, frames, num_codebooks=NUM_CODEBOOKS)
    assert ours.tolist() == expected["input_ids"][0].tolist()
    columns = torch.cat([apply_delay(draw_codes(F, seed=F), begin_id=BEGIN, end_id=END) for F in frames])
    assert torch.equal(columns, expected["audio_input_ids"][0])


@pytest.mark.parametrize("case", CASES)
def test_generation_reads_the_beginning_of_what_training_read(processor, case):
    parts, ref_samples = CASES[case]
    messages = build_messages("seven two", **parts)
    ref_frames = [FRAMES_OF_SAMPLES[s] for s in ref_samples]
    prompt = encode_prompt(processor.tokenizer, messages, ref_frames, num_codebooks=NUM_CODEBOOKS)
    expected = processed(processor, messages, ref_samples, add_generation_prompt=True)
    assert prompt.tolist() == expected["input_ids"][0].tolist()
    trained = encode_conversation(
        processor.tokenizer, messages, [*ref_frames, 11], num_codebooks=NUM_CODEBOOKS
    )
    assert trained[: len(prompt)].tolist() == prompt.tolist()


def test_an_audio_token_inside_a_transcript_is_refused():
    with pytest.raises(UserError, match="AUDIO_OUT"):
        encode_prompt(tiny_tokenizer(), build_messages("say <|AUDIO_OUT|>"), [], num_codebooks=NUM_CODEBOOKS)
