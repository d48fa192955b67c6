"""For clips of any length and codes: the delay is reverted exactly, and every target is right."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_trainer.model.delay_pattern import apply_delay, build_targets, count_columns, revert_delay
from higgs_trainer.tensors import IGNORED


@st.composite
def draw_clips(draw):
    """Draw codes (F, K) and a codebook size above them; begin and end of stream have the next two ids."""
    F, K, C = draw(st.integers(1, 40)), draw(st.integers(1, 9)), draw(st.integers(1, 50))
    seed = draw(st.integers(0, 2**32 - 1))
    return torch.randint(C, (F, K), generator=torch.Generator().manual_seed(seed)), C


@given(draw_clips())
@settings(deadline=None)
def test_reverting_the_delay_returns_the_codes(clip):
    codes_FK, C = clip
    columns_PK = apply_delay(codes_FK, begin_id=C, end_id=C + 1)
    assert len(columns_PK) == count_columns(*codes_FK.shape)
    assert torch.equal(revert_delay(columns_PK, codebook_size=C), codes_FK)


@given(draw_clips(), st.data())
@settings(deadline=None)
def test_columns_that_were_cut_off_keep_their_complete_frames(clip, data):
    codes_FK, C = clip
    columns_PK = apply_delay(codes_FK, begin_id=C, end_id=C + 1)
    cut = data.draw(st.integers(0, len(columns_PK)))
    F, K = codes_FK.shape
    assert torch.equal(revert_delay(columns_PK[:cut], codebook_size=C), codes_FK[: min(F, max(cut - K, 0))])


@given(draw_clips())
@settings(deadline=None)
def test_each_cell_equals_the_definition(clip):
    """Compare cell by cell with the definition: codebook k lags codebook 0 by k columns."""
    codes_FK, C = clip
    K = codes_FK.shape[1]
    columns_PK = apply_delay(codes_FK, begin_id=C, end_id=C + 1).tolist()
    targets_PK = build_targets(codes_FK, end_id=C + 1).tolist()
    for k in range(K):
        codes = codes_FK[:, k].tolist()
        lead, tail = 1 + k, K - 1 - k
        assert [row[k] for row in columns_PK] == [C] * lead + codes + [C + 1] * (1 + tail)
        assert [row[k] for row in targets_PK] == [IGNORED] * lead + [*codes, C + 1] + [IGNORED] * tail


@given(draw_clips())
@settings(deadline=None)
def test_end_of_stream_is_a_target_once_per_codebook_where_it_begins(clip):
    codes_FK, C = clip
    targets_PK = build_targets(codes_FK, end_id=C + 1)
    columns_PK = apply_delay(codes_FK, begin_id=C, end_id=C + 1)
    assert (targets_PK == C + 1).sum(dim=0).tolist() == [1] * codes_FK.shape[1]
    first_end_K = (columns_PK == C + 1).int().argmax(dim=0)
    assert torch.equal(first_end_K, (targets_PK == C + 1).int().argmax(dim=0))
