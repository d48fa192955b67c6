"""Code noise depends on seed, epoch and index only, and leaves targets and held-out examples unchanged."""

import torch

from higgs_trainer.dataset.code_noise import NoisyExamples
from tiny import NUM_CODES, encode_rows, make_row, tiny_checkpoint

CHECKPOINT = tiny_checkpoint()
CLEAN = encode_rows([make_row(seed, num_frames=31) for seed in range(3)], CHECKPOINT)


def disturb(*, seed=0, code_noise=0.9):
    return NoisyExamples(CLEAN, code_noise=code_noise, num_codes=NUM_CODES, seed=seed)


def test_only_the_codes_that_the_model_reads_change():
    for clean, noisy in zip(CLEAN, disturb(), strict=False):
        changed_PK = clean.columns_PK != noisy.columns_PK
        assert changed_PK.any()
        assert not changed_PK.all()
        assert (clean.columns_PK[changed_PK] < NUM_CODES).all()
        assert (noisy.columns_PK[changed_PK] < NUM_CODES).all()
        for name in ("input_ids", "targets_PK", "keep_T"):
            assert torch.equal(getattr(clean, name), getattr(noisy, name)), name


def test_a_draw_depends_on_seed_epoch_and_index_alone():
    def columns(noisy, index=1, epoch=2):
        noisy.set_epoch(epoch)
        return noisy[index].columns_PK

    first = columns(disturb())
    asked_before = disturb()
    columns(asked_before, index=2, epoch=0)
    assert torch.equal(columns(asked_before), first)
    assert not torch.equal(columns(disturb(seed=1)), first)
    assert not torch.equal(columns(disturb(), epoch=3), first)
    alike = NoisyExamples([CLEAN[1]] * 2, code_noise=0.9, num_codes=NUM_CODES, seed=0)
    assert not torch.equal(alike[0].columns_PK, alike[1].columns_PK)


def test_no_more_than_the_given_share_changes():
    example = encode_rows([make_row(4, num_frames=500)], CHECKPOINT)[0]
    noisy = NoisyExamples([example], code_noise=0.3, num_codes=NUM_CODES, seed=0)
    is_code_PK = example.columns_PK < NUM_CODES
    shares = []
    for epoch in range(40):
        noisy.set_epoch(epoch)
        shares.append(float((noisy[0].columns_PK != example.columns_PK)[is_code_PK].float().mean()))
    assert max(shares) < 0.33
    assert 0.1 < sum(shares) / len(shares) < 0.2
