"""Our token sequences against those of transformers' processor and chat template, token by token."""

import pytest
import torch

from conversations import TARGET_FRAMES, TASKS, CountingCodec, build_processor, process
from higgs_trainer.errors import UserError
from higgs_trainer.model.delay_pattern import apply_delay
from higgs_trainer.model.prompt import (
    Context,
    PromptClip,
    build_messages,
    encode_conversation,
    encode_prompt,
)
from tiny import NUM_CODEBOOKS, NUM_CODES, draw_codes, tiny_tokenizer

BEGIN, END = NUM_CODES, NUM_CODES + 1


@pytest.fixture(scope="module")
def processor():
    tokenizer = tiny_tokenizer()
    return build_processor(tokenizer, CountingCodec(), chat_template=tokenizer.chat_template)


AUDIO = {"role": "assistant", "content": [{"type": "audio"}]}


@pytest.mark.parametrize("task", TASKS)
def test_training_reads_what_the_processor_builds(processor, task):
    text, context = TASKS[task]
    frames = [*(len(clip.codes_FK) for clip in context.clips), TARGET_FRAMES]
    expected = process(processor, [*build_messages(text, context), AUDIO], frames)
    ours = encode_conversation(processor.tokenizer, text, context, TARGET_FRAMES, num_codebooks=NUM_CODEBOOKS)
    assert ours.tolist() == expected["input_ids"][0].tolist()
    columns = torch.cat([apply_delay(draw_codes(F, seed=F), begin_id=BEGIN, end_id=END) for F in frames])
    assert torch.equal(columns, expected["audio_input_ids"][0])


@pytest.mark.parametrize("task", TASKS)
def test_generation_reads_the_beginning_of_what_training_read(processor, task):
    text, context = TASKS[task]
    prompt = encode_prompt(processor.tokenizer, text, context, num_codebooks=NUM_CODEBOOKS)
    frames = [len(clip.codes_FK) for clip in context.clips]
    expected = process(processor, build_messages(text, context), frames, add_generation_prompt=True)
    assert prompt.tolist() == expected["input_ids"][0].tolist()
    trained = encode_conversation(
        processor.tokenizer, text, context, TARGET_FRAMES, num_codebooks=NUM_CODEBOOKS
    )
    assert trained[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("token", ["<|AUDIO_OUT|>", "<|eot_id|>", "<|any_other|>"])
def test_a_special_token_inside_a_text_is_refused(token):
    clip = PromptClip(f"say {token}", draw_codes(3, seed=3))
    for text, context in (
        (f"say {token}", Context()),
        ("x", Context(f"a {token}")),
        ("x", Context(turns=(clip,))),
    ):
        with pytest.raises(UserError, match="contains the special token"):
            encode_prompt(tiny_tokenizer(), text, context, num_codebooks=NUM_CODEBOOKS)


def test_a_typed_text_is_normalized_like_a_prepared_one():
    typed, prepared = " e\u0301t\u00e9  [laugh]\n", "\u00e9t\u00e9 [laugh]"
    clips = [PromptClip(text, draw_codes(3, seed=3)) for text in (typed, prepared)]
    first, second = (
        encode_prompt(tiny_tokenizer(), text, Context(turns=(clip,)), num_codebooks=NUM_CODEBOOKS)
        for text, clip in zip((typed, prepared), clips, strict=True)
    )
    assert torch.equal(first, second)


def test_a_dialogue_is_recognized_if_its_voices_are_in_several_turns():
    turn = PromptClip("[SPEAKER0] one", draw_codes(3, seed=3))
    system = build_messages("[SPEAKER0] one\n[SPEAKER1] two")[0]
    assert build_messages("[SPEAKER1] two", Context(turns=(turn,)))[0] == system
    assert build_messages("[SPEAKER0] two", Context(turns=(turn,)))[0] != system


def test_contexts_that_the_template_cannot_lay_out_are_refused():
    wordless = (PromptClip(None, draw_codes(3, seed=3)),)
    with pytest.raises(UserError, match="need a scene"):
        build_messages("x", Context(references=wordless, references_in_system=True))
    with pytest.raises(UserError, match=r"\[SPEAKER1\], but no reference for it"):
        build_messages("[SPEAKER0] x\n[SPEAKER1] y", Context(references=wordless))
    with pytest.raises(UserError, match="Add its text"):
        build_messages("x", Context(references=wordless))
    build_messages("x", Context("A hall.", wordless, references_in_system=True))
