"""The delay pattern against transformers' processor, against Boson's function, and against its inverse."""

import json
from pathlib import Path

import pytest
import torch
from transformers import HiggsAudioV2Processor

from higgs_trainer.model.delay_pattern import apply_delay, build_targets, count_columns, revert_delay
from higgs_trainer.tensors import IGNORED

C, BEGIN, END = 11, 11, 12


def draw_codes(F, K):
    return torch.randint(C, (F, K), generator=torch.Generator().manual_seed(F * 100 + K))


@pytest.mark.parametrize(("F", "K"), [(1, 8), (5, 3), (7, 8), (13, 2)])
def test_the_layout_is_the_processors(F, K):
    codes_FK = draw_codes(F, K)
    framed_1KF = torch.nn.functional.pad(codes_FK.T, (1, 0), value=BEGIN)
    framed_1KF = torch.nn.functional.pad(framed_1KF, (0, 1), value=END)[None]
    processor = HiggsAudioV2Processor.__new__(HiggsAudioV2Processor)
    processor.audio_stream_bos_id, processor.audio_stream_eos_id = BEGIN, END
    expected_PK = processor.build_delay_pattern(framed_1KF)[0].T
    assert torch.equal(apply_delay(codes_FK, begin_id=BEGIN, end_id=END), expected_PK)
    assert len(expected_PK) == count_columns(F, K)


# tests/golden/README.md says how it was made.
GOLDEN = Path(__file__).parents[2] / "golden" / "boson_delay_pattern.json"


@pytest.mark.parametrize("clip", json.loads(GOLDEN.read_text()))
def test_columns_and_targets_are_bosons(clip):
    codes_FK = torch.tensor(clip["codes"]).T
    columns_PK = apply_delay(codes_FK, begin_id=1024, end_id=1025)
    assert torch.equal(columns_PK, torch.tensor(clip["columns"]).T)
    assert torch.equal(build_targets(codes_FK, end_id=1025), torch.tensor(clip["labels"]).T)


@pytest.mark.parametrize(("F", "K"), [(1, 8), (5, 3), (13, 8)])
def test_reverting_gives_the_codes_back(F, K):
    codes_FK = draw_codes(F, K)
    columns_PK = apply_delay(codes_FK, begin_id=BEGIN, end_id=END)
    assert torch.equal(revert_delay(columns_PK, codebook_size=C), codes_FK)


def test_a_clip_that_was_cut_off_keeps_its_complete_frames():
    codes_FK = draw_codes(9, 4)
    columns_PK = apply_delay(codes_FK, begin_id=BEGIN, end_id=END)[:8]
    assert torch.equal(revert_delay(columns_PK, codebook_size=C), codes_FK[:4])


@pytest.mark.parametrize(("F", "K"), [(1, 8), (6, 5)])
def test_the_targets_of_a_codebook_are_its_codes_and_one_end_of_stream(F, K):
    codes_FK = draw_codes(F, K)
    targets_PK = build_targets(codes_FK, end_id=END)
    for k in range(K):
        supervised = targets_PK[:, k][targets_PK[:, k] != IGNORED]
        assert supervised.tolist() == [*codes_FK[:, k].tolist(), END]
    columns_PK = apply_delay(codes_FK, begin_id=BEGIN, end_id=END)
    is_supervised_PK = targets_PK != IGNORED
    assert torch.equal(columns_PK[is_supervised_PK], targets_PK[is_supervised_PK])


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match="without frames"):
        apply_delay(torch.zeros(0, 8, dtype=torch.long), begin_id=BEGIN, end_id=END)
