"""The delay pattern and the targets equal those of Boson's own function, called as its collator calls it."""

import pytest
import torch
from boson_multimodal.model.higgs_audio.utils import build_delay_pattern_mask

from higgs_trainer.model.delay_pattern import apply_delay, build_targets

BEGIN, END, IGNORED = 1024, 1025, -100


def frame(codes_KF, first, last):
    codes_KF = torch.nn.functional.pad(codes_KF, (1, 0), value=first)
    return torch.nn.functional.pad(codes_KF, (0, 1), value=last)


@pytest.mark.parametrize("F", [1, 2, 3, 7, 8, 9, 40])
@pytest.mark.parametrize("K", [1, 2, 8, 11])
def test_columns_and_targets_equal_bosons(F, K):
    codes_FK = torch.randint(1024, (F, K), generator=torch.Generator().manual_seed(100 * F + K))
    columns, _ = build_delay_pattern_mask(frame(codes_FK.T, BEGIN, END)[None], BEGIN, END)
    assert torch.equal(apply_delay(codes_FK, begin_id=BEGIN, end_id=END), columns[0].T)
    labels, _ = build_delay_pattern_mask(frame(codes_FK.T, IGNORED, END)[None], IGNORED, IGNORED)
    assert torch.equal(build_targets(codes_FK, end_id=END), labels[0].T)
