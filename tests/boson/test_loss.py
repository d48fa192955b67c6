"""The loss of Boson's model equals independent references, on batches of Boson's own collator."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from higgs_trainer.model.families import BOSON, family_of
from higgs_trainer.training.losses import (
    compute_audio_loss,
    compute_cross_entropy_sums,
    compute_text_cross_entropy_sum,
    count_cells,
)
from tiny_boson import BEGIN, END, IGNORED, NUM_CODEBOOKS, make_collator, make_model, make_sample

# Seed, frames, frames of the reference. The lengths differ, so that two rows are padded.
LENGTHS = [(1, 7, 0), (2, 11, 5), (3, 4, 3)]


def make_samples():
    return [make_sample(seed, num_frames=frames, ref_frames=ref) for seed, frames, ref in LENGTHS]


def run(samples):
    """Split one batch by the family's contract and run the model. Returns model, split and outputs."""
    model = make_model().eval()
    split = BOSON.contract.split(make_collator()(samples))
    with torch.no_grad():
        outputs = model(**split.model_inputs)
    return model, split, outputs


def log_softmax(logits: Tensor) -> np.ndarray:
    values = logits.double().numpy()
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def reference_audio_loss(samples, audio_logits: Tensor) -> float:
    """Compute the audio loss from the codes, without any label: the mean over codebooks of their mean cross-entropy.

    Frame f of codebook k is in column 1 + f + k of its clip and is predicted by the column before it. One end-of-stream
    code follows the last frame.
    """
    losses = [[] for _ in range(NUM_CODEBOOKS)]
    scores = log_softmax(audio_logits)
    first = 0
    for sample in samples:
        target = sample.get_audio_codes(len(sample.audio_ids_start) - 1)
        frames = target.shape[1]
        for k in range(NUM_CODEBOOKS):
            for f, code in enumerate([*target[k].tolist(), END]):
                losses[k].append(-scores[first + f + k, k, code])
        first += 1 + frames + 1 + NUM_CODEBOOKS - 1
    assert first == len(scores)
    return float(np.mean([np.mean(codebook) for codebook in losses]))


def test_the_audio_loss_equals_a_reference_computed_from_the_codes():
    samples = make_samples()
    _, split, outputs = run(make_samples())
    aligned = BOSON.align(outputs, split.model_inputs, split.targets)
    sums_K, cells_K = (
        compute_cross_entropy_sums(aligned.audio_logits_NKC, aligned.audio_targets_NK),
        count_cells(aligned.audio_targets_NK),
    )
    loss = float(compute_audio_loss(sums_K, cells_K, (1.0,) * NUM_CODEBOOKS))
    assert loss == pytest.approx(reference_audio_loss(samples, outputs.audio_logits), abs=1e-6)
    assert cells_K.tolist() == [sum(frames + 1 for _, frames, _ in LENGTHS)] * NUM_CODEBOOKS


def test_end_of_stream_is_supervised_once_per_codebook_and_begin_of_stream_never():
    _, split, outputs = run(make_samples())
    targets_NK = BOSON.align(outputs, split.model_inputs, split.targets).audio_targets_NK
    assert (targets_NK == END).sum(dim=0).tolist() == [len(LENGTHS)] * NUM_CODEBOOKS
    assert not (targets_NK == BEGIN).any()


def test_the_text_loss_equals_one_computed_from_bosons_expanded_labels():
    model, split, outputs = run(make_samples())
    text = BOSON.align(outputs, split.model_inputs, split.targets).text
    loss = float(compute_text_cross_entropy_sum(*text)) / len(text.targets_M)

    with torch.no_grad():
        theirs = model(**split.model_inputs, label_ids=split.targets["label_ids"])
    labels_BT = theirs.expanded_labels[:, 1:]
    scores_MV = log_softmax(theirs.logits[:, :-1][labels_BT != IGNORED])
    labels_M = labels_BT[labels_BT != IGNORED].numpy()
    expected = -scores_MV[np.arange(len(labels_M)), labels_M].mean()

    assert "label_ids" not in split.model_inputs
    assert outputs.expanded_labels is None
    assert len(text.targets_M) == len(labels_M) == 3 * len(LENGTHS)
    assert loss == pytest.approx(float(expected), abs=1e-6)


def test_text_labels_are_aligned_when_the_row_is_padded_on_the_left():
    _, split, outputs = run(make_samples()[1:2])
    text = BOSON.align(outputs, split.model_inputs, split.targets).text
    assert text.targets_M.tolist() == make_samples()[1].label_ids[-3:].tolist()


def test_the_counts_equal_the_numbers_of_aligned_targets():
    _, split, outputs = run(make_samples())
    aligned = BOSON.align(outputs, split.model_inputs, split.targets)
    counts = BOSON.count(split.model_inputs, split.targets)
    assert counts.tolist() == [*count_cells(aligned.audio_targets_NK).tolist(), len(aligned.text.targets_M)]


def test_a_supervised_first_token_is_not_counted_because_nothing_predicts_it():
    sample = make_sample(1)
    sample.label_ids = sample.input_ids.clone()
    _, split, outputs = run([sample])
    aligned = BOSON.align(outputs, split.model_inputs, split.targets)
    predicted = [t for t in sample.input_ids.tolist()[1:] if t != 82]
    assert aligned.text.targets_M.tolist() == predicted
    assert BOSON.count(split.model_inputs, split.targets)[-1] == len(predicted)


def test_a_reference_changes_the_logits_and_is_not_supervised():
    plain, changed = make_sample(2, num_frames=11, ref_frames=5), make_sample(2, num_frames=11, ref_frames=5)
    changed.audio_ids_concat[:, 0] = (changed.audio_ids_concat[:, 0] + 1) % 1024
    results = [run([sample]) for sample in (plain, changed)]
    logits = [
        BOSON.align(outputs, split.model_inputs, split.targets).audio_logits_NKC
        for _, split, outputs in results
    ]
    cells = [BOSON.count(split.model_inputs, split.targets)[0] for _, split, _ in results]
    assert cells == [12, 12]
    assert float((logits[0] - logits[1]).abs().max()) > 1e-4


def test_a_supervised_first_column_raises():
    _, split, outputs = run(make_samples())
    split.targets["label_audio_ids"][:, 0] = 3
    with pytest.raises(ValueError, match="first column of a clip"):
        BOSON.align(outputs, split.model_inputs, split.targets)


def test_a_supervised_placeholder_raises():
    _, split, outputs = run(make_samples())
    split.targets["label_ids"][split.model_inputs["input_ids"] == 82] = 4
    with pytest.raises(ValueError, match="placeholder"):
        BOSON.align(outputs, split.model_inputs, split.targets)


def test_label_ids_and_labels_that_differ_raise():
    _, split, outputs = run(make_samples())
    split.targets["labels"] = split.targets["label_ids"] + 1
    with pytest.raises(ValueError, match="label_ids and labels"):
        BOSON.align(outputs, split.model_inputs, split.targets)


def test_family_of_finds_the_family_of_bosons_model():
    assert family_of(make_model()) is BOSON


def test_the_contract_lists_the_inputs_that_bosons_collator_makes():
    batch = make_collator()(make_samples())
    names = {field.name for field in dataclasses.fields(batch)}
    assert names - BOSON.contract.inputs == {"label_ids"}
    assert BOSON.contract.inputs <= names
    assert len(BOSON.contract.inputs) == 11
