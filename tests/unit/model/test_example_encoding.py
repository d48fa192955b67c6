"""What an example supervises: each code of the target clip and its end of stream, and nothing of the reference."""

import pytest
import torch

from conversations import TARGET_FRAMES, TASKS
from higgs_trainer.dataset.collator import PaddingCollator
from higgs_trainer.model.example_encoding import encode_example
from higgs_trainer.model.families import family_of
from higgs_trainer.model.prompt import encode_conversation
from higgs_trainer.tensors import IGNORED
from tiny import NUM_CODEBOOKS, NUM_CODES, make_row, tiny_checkpoint

CHECKPOINT = tiny_checkpoint()
IDS = CHECKPOINT.stream_ids


def encode(**row):
    return encode_example(make_row(3, **row), CHECKPOINT.tokenizer, IDS, CHECKPOINT.sequence)


def collate(examples):
    return PaddingCollator(
        pad_token_id=CHECKPOINT.model.config.pad_token_id,
        end_id=IDS.end,
        num_codebooks=NUM_CODEBOOKS,
    )(examples)


def test_the_reference_is_there_and_not_supervised():
    alone, cloned = encode(num_frames=5), encode(num_frames=5, ref_frames=7)
    num_ref_columns = len(cloned.columns_PK) - len(alone.columns_PK)
    assert num_ref_columns == 7 + NUM_CODEBOOKS + 1
    assert (cloned.targets_PK[:num_ref_columns] == IGNORED).all()
    assert torch.equal(cloned.targets_PK[num_ref_columns:], alone.targets_PK)
    assert torch.equal(cloned.columns_PK[num_ref_columns:], alone.columns_PK)
    assert cloned.keep_T.sum() == alone.keep_T.sum() == 5 + NUM_CODEBOOKS


def test_logits_are_kept_one_position_before_each_target():
    example = encode(num_frames=5)
    is_audio_T = (example.input_ids == IDS.audio_token) | (example.input_ids == IDS.delay_token)
    supervised_T = torch.zeros_like(is_audio_T)
    supervised_T[is_audio_T] = (example.targets_PK != IGNORED).any(dim=1)
    assert torch.equal(example.keep_T[:-1], supervised_T[1:])
    assert not example.keep_T[-1]
    # The first kept position is the first column, all begin of stream: it predicts the first code.
    first = int(example.keep_T.nonzero()[0])
    assert first == int(is_audio_T.nonzero()[0])


def test_padding_is_on_the_right_and_never_supervised():
    short, long = encode(num_frames=3), encode(num_frames=9)
    batch = collate([short, long])
    T, P = len(short.input_ids), len(short.columns_PK)
    assert torch.equal(batch["input_ids"][0, :T], short.input_ids)
    assert not batch["logits_to_keep"][0, T:].any()
    assert (batch["audio_labels"][0, P:] == IGNORED).all()
    assert batch["audio_input_ids_mask"].sum(dim=1).tolist() == [P, len(long.columns_PK)]
    assert batch["utterance_ids"] == ["clip-3", "clip-3"]


def row_of(task, **changes):
    """Build a prepared row from the conversation of a task."""
    text, context = TASKS[task]
    row = {
        **make_row(3, num_frames=TARGET_FRAMES, text=text),
        "scene": context.scene,
        "task": "reference_in_system" if context.references_in_system else "derived",
        "num_references": len(context.references),
        "context_texts": [clip.text for clip in context.clips],
        "context_codes": [clip.codes_FK for clip in context.clips],
    }
    return row | changes


@pytest.mark.parametrize("task", TASKS)
def test_a_prepared_row_is_encoded_like_its_context(task):
    text, context = TASKS[task]
    example = encode_example(row_of(task), CHECKPOINT.tokenizer, IDS, CHECKPOINT.sequence)
    ids = encode_conversation(CHECKPOINT.tokenizer, text, context, TARGET_FRAMES, num_codebooks=NUM_CODEBOOKS)
    assert torch.equal(example.input_ids, ids)


@pytest.mark.parametrize("task", TASKS)
def test_no_clip_of_the_context_is_supervised(task):
    alone = encode_example(row_of("single speaker"), CHECKPOINT.tokenizer, IDS, CHECKPOINT.sequence)
    example = encode_example(row_of(task), CHECKPOINT.tokenizer, IDS, CHECKPOINT.sequence)
    num_context = len(example.columns_PK) - len(alone.columns_PK)
    assert num_context == sum(len(clip.codes_FK) + NUM_CODEBOOKS + 1 for clip in TASKS[task][1].clips)
    assert (example.targets_PK[:num_context] == IGNORED).all()
    assert torch.equal(example.targets_PK[num_context:], alone.targets_PK)
    assert example.keep_T.sum() == alone.keep_T.sum() == TARGET_FRAMES + NUM_CODEBOOKS


@pytest.mark.parametrize("task", [task for task, (_, context) in TASKS.items() if context.clips])
def test_every_clip_of_the_context_reaches_the_logits(task):
    row = row_of(task)
    for clip in range(len(row["context_codes"])):
        changed = [codes_FK.clone() for codes_FK in row["context_codes"]]
        changed[clip][0, 0] = (changed[clip][0, 0] + 1) % NUM_CODES
        rows = [row, row | {"context_codes": changed}]
        before, after = (
            logits_of(encode_example(each, CHECKPOINT.tokenizer, IDS, CHECKPOINT.sequence)) for each in rows
        )
        assert before.shape == after.shape == (TARGET_FRAMES + NUM_CODEBOOKS, NUM_CODEBOOKS * (NUM_CODES + 2))
        assert not torch.allclose(before, after, atol=1e-6)


def logits_of(example):
    batch = collate([example])
    inputs = family_of(CHECKPOINT.model).contract.split(batch).model_inputs
    with torch.no_grad():
        return CHECKPOINT.model.eval()(**inputs).logits


def test_the_reward_reaches_the_batch_and_never_the_model():
    rows = [make_row(1) | {"reward": 0.25}, make_row(2)]
    batch = collate([encode_example(row, CHECKPOINT.tokenizer, IDS, CHECKPOINT.sequence) for row in rows])
    assert batch["rewards"] == [0.25, None]
    split = family_of(CHECKPOINT.model).contract.split(batch)
    assert "rewards" not in split.model_inputs
    assert split.metadata["rewards"] == [0.25, None]
