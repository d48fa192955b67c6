"""The loss of a batch against a NumPy implementation of the definition, and against transformers' own loss.

The definition: the hidden state at position p predicts position p + 1. Supervised are the codes of the target clip and
one end of stream per codebook; begin and fill cells, prompts and references are not. Codebook k is delayed by k
columns, after a column of begin of stream.

    audio_loss = sum_k w_k * (sum of cross-entropies over the cells of k / their number) / sum_k w_k

Everything in float64, at sizes that are odd and pairwise different.
"""

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, NUM_CODES, encode_rows, make_row, tiny_checkpoint

UNEQUAL = (3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.7, 0.6)
ROWS = [
    make_row(seed, num_frames=frames, ref_frames=ref)
    for seed, (frames, ref) in enumerate([(5, 0), (17, 3), (1, 11)])
]


@pytest.fixture(scope="module")
def checkpoint():
    checkpoint = tiny_checkpoint()
    with torch.no_grad():
        # Far from uniform, so that the losses of the cells differ.
        checkpoint.model.audio_lm_head.weight.mul_(30)
    checkpoint.model.double()
    return checkpoint


def cross_entropy(logits_C, target, smoothing):
    log_probability_C = logits_C - logits_C.max()
    log_probability_C = log_probability_C - np.log(np.exp(log_probability_C).sum())
    return -(1 - smoothing) * log_probability_C[target] - smoothing * log_probability_C.mean()


def reference_loss(checkpoint, rows, weights, smoothing):
    """Compute the loss from the codes of each row and the logits at every position of a batch of that row only."""
    losses_of_k = [[] for _ in range(NUM_CODEBOOKS)]
    for row in rows:
        example = encode_rows([row], checkpoint)[0]
        with torch.no_grad():
            logits = checkpoint.model(
                input_ids=example.input_ids[None],
                audio_input_ids=example.columns_PK[None],
                audio_input_ids_mask=torch.ones(1, len(example.columns_PK), dtype=torch.bool),
            ).logits
        logits_TKC = logits[0].numpy().reshape(len(example.input_ids), NUM_CODEBOOKS, -1)
        codes_FK = row["codes_FK"].numpy()
        end_id = checkpoint.model.config.audio_stream_eos_id
        tokens = example.input_ids.tolist()
        is_audio_T = np.isin(
            tokens, [checkpoint.model.config.audio_token_id, checkpoint.model.config.audio_delay_token_id]
        )
        num_columns = len(codes_FK) + NUM_CODEBOOKS + 1
        # Of the target's columns; the first is the column of begin of stream.
        positions = np.flatnonzero(is_audio_T)[-num_columns:]
        for k in range(NUM_CODEBOOKS):
            for frame, code in enumerate([*codes_FK[:, k], end_id]):
                before = positions[1 + k + frame] - 1
                losses_of_k[k].append(cross_entropy(logits_TKC[before, k], code, smoothing))
    means_K = np.array([np.mean(losses) for losses in losses_of_k])
    return float((np.array(weights) * means_K).sum() / np.sum(weights))


def build_trainer(checkpoint, tmp_path, *, packing=True, weights=None, smoothing=0.0):
    padding = PaddingCollator(checkpoint.model.config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS)
    return HiggsAudioTrainer(
        model=checkpoint.model.train(),
        args=TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", label_smoothing_factor=smoothing
        ),
        data_collator=PackingCollator(NUM_CODEBOOKS) if packing else padding,
        family=HIGGS_AUDIO_V2,
        weights=LossWeights(codebooks=weights),
    )


def loss_of(trainer, checkpoint, rows):
    dataset = encode_rows(rows, checkpoint)
    batch = trainer.data_collator([dataset[i] for i in range(len(rows))])
    return float(trainer.compute_loss(trainer.model, batch))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("weights", [None, UNEQUAL])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_the_definition(checkpoint, tmp_path, packing, weights, smoothing):
    trainer = build_trainer(checkpoint, tmp_path, packing=packing, weights=weights, smoothing=smoothing)
    expected = reference_loss(checkpoint, ROWS, weights or (1.0,) * NUM_CODEBOOKS, smoothing)
    assert loss_of(trainer, checkpoint, ROWS) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_not_the_mean_of_the_means_of_examples(checkpoint, tmp_path):
    """The definition averages over all cells, which differs if the clips have different lengths."""
    trainer = build_trainer(checkpoint, tmp_path)
    each = [loss_of(trainer, checkpoint, [row]) for row in ROWS]
    assert loss_of(trainer, checkpoint, ROWS) != pytest.approx(np.mean(each), rel=1e-3)


@pytest.mark.parametrize("packing", [True, False])
def test_transformers_own_loss_agrees_where_it_is_right(checkpoint, tmp_path, packing):
    """transformers' loss is right for one forward of right-padded or single rows without text labels.

    It is the sum over codebooks, which is our mean times their number.
    """
    trainer = build_trainer(checkpoint, tmp_path, packing=packing)
    rows = ROWS[:1] if packing else ROWS
    dataset = encode_rows(rows, checkpoint)
    batch = trainer.data_collator([dataset[i] for i in range(len(rows))])
    with torch.no_grad():
        # The forward of the class, since the guard on the instance would divert the labels.
        native = type(checkpoint.model).forward(
            checkpoint.model,
            input_ids=batch["input_ids"],
            audio_input_ids=batch["audio_input_ids"],
            audio_input_ids_mask=batch["audio_input_ids_mask"],
            audio_labels=batch["audio_labels"],
        )
    assert loss_of(trainer, checkpoint, rows) == pytest.approx(float(native.loss) / NUM_CODEBOOKS, rel=1e-6)
    assert native.logits.shape[-1] == NUM_CODEBOOKS * (NUM_CODES + 2)
