"""Our token sequences against those of transformers' own processor and chat template, token for token."""

import pytest
import torch
from transformers import DacConfig, DacFeatureExtractor, DacModel, HiggsAudioV2Processor
from transformers.models.dac.modeling_dac import DacEncoderOutput

from conversations import TARGET_FRAMES, TASKS
from higgs_trainer.data.delay_pattern import apply_delay
from higgs_trainer.data.prompt import (
    Context,
    SpokenClip,
    build_messages,
    encode_conversation,
    encode_prompt,
)
from higgs_trainer.errors import UserError
from tiny import NUM_CODEBOOKS, NUM_CODES, draw_codes, tiny_tokenizer

BEGIN, END = NUM_CODES, NUM_CODES + 1
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


def processed(processor, messages, frames, **kwargs):
    """What the processor makes of the conversation, with a waveform for each of its clips."""
    samples_of = {F: S for S, F in FRAMES_OF_SAMPLES.items()}
    waveforms = iter(torch.zeros(samples_of[F]).numpy() for F in frames)
    filled = [
        message | {"content": [fill_clip(part, waveforms) for part in message["content"]]}
        for message in messages
    ]
    return processor.apply_chat_template(
        filled, tokenize=True, return_dict=True, return_tensors="pt", sampling_rate=24_000, **kwargs
    )


def fill_clip(part, waveforms):
    return part | {"audio": next(waveforms)} if part["type"] == "audio" else part


AUDIO = {"role": "assistant", "content": [{"type": "audio"}]}


@pytest.mark.parametrize("task", TASKS)
def test_training_reads_what_the_processor_builds(processor, task):
    text, context = TASKS[task]
    frames = [*(len(clip.codes_FK) for clip in context.clips), TARGET_FRAMES]
    expected = processed(processor, [*build_messages(text, context), AUDIO], frames)
    ours = encode_conversation(processor.tokenizer, text, context, TARGET_FRAMES, num_codebooks=NUM_CODEBOOKS)
    assert ours.tolist() == expected["input_ids"][0].tolist()
    columns = torch.cat([apply_delay(draw_codes(F, seed=F), begin_id=BEGIN, end_id=END) for F in frames])
    assert torch.equal(columns, expected["audio_input_ids"][0])


@pytest.mark.parametrize("task", TASKS)
def test_generation_reads_the_beginning_of_what_training_read(processor, task):
    text, context = TASKS[task]
    prompt = encode_prompt(processor.tokenizer, text, context, num_codebooks=NUM_CODEBOOKS)
    frames = [len(clip.codes_FK) for clip in context.clips]
    expected = processed(processor, build_messages(text, context), frames, add_generation_prompt=True)
    assert prompt.tolist() == expected["input_ids"][0].tolist()
    trained = encode_conversation(
        processor.tokenizer, text, context, TARGET_FRAMES, num_codebooks=NUM_CODEBOOKS
    )
    assert trained[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("token", ["<|AUDIO_OUT|>", "<|eot_id|>", "<|any_other|>"])
def test_a_special_token_inside_a_text_is_refused(token):
    clip = SpokenClip(f"say {token}", draw_codes(3, seed=3))
    for text, context in (
        (f"say {token}", Context()),
        ("x", Context(f"a {token}")),
        ("x", Context(turns=(clip,))),
    ):
        with pytest.raises(UserError, match="holds the special token"):
            encode_prompt(tiny_tokenizer(), text, context, num_codebooks=NUM_CODEBOOKS)


def test_what_no_template_can_lay_out_is_refused():
    wordless = (SpokenClip(None, draw_codes(3, seed=3)),)
    with pytest.raises(UserError, match="stand behind a scene"):
        build_messages("x", Context(references=wordless, references_in_system=True))
    with pytest.raises(UserError, match="give its text"):
        build_messages("x", Context(references=wordless))
    build_messages("x", Context("A hall.", wordless, references_in_system=True))
