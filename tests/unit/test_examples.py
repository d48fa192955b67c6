"""What an example supervises: the target turn, each code once, the end of stream, nothing of the reference."""

import torch

from higgs_trainer.batch import IGNORED
from higgs_trainer.data.collator import PaddingCollator
from higgs_trainer.data.examples import encode_example
from tiny import NUM_CODEBOOKS, make_row, tiny_checkpoint

CHECKPOINT = tiny_checkpoint()
IDS = CHECKPOINT.stream_ids


def encode(**row):
    return encode_example(make_row(3, **row), CHECKPOINT.tokenizer, IDS)


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


def test_text_labels_are_those_behind_the_clip():
    example = encode(num_frames=5)
    supervised = example.input_ids[example.labels != IGNORED]
    assert CHECKPOINT.tokenizer.convert_ids_to_tokens(supervised) == ["<|audio_eos|>", "<|eot_id|>"]


def test_padding_stands_at_the_right_and_is_never_supervised():
    short, long = encode(num_frames=3), encode(num_frames=9)
    batch = collate([short, long])
    T, P = len(short.input_ids), len(short.columns_PK)
    assert torch.equal(batch["input_ids"][0, :T], short.input_ids)
    assert not batch["logits_to_keep"][0, T:].any()
    assert (batch["audio_labels"][0, P:] == IGNORED).all()
    assert batch["audio_input_ids_mask"].sum(dim=1).tolist() == [P, len(long.columns_PK)]
    assert batch["utterance_ids"] == ["clip-3", "clip-3"]
