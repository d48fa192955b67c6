"""A training step never makes the host wait for a GPU: it reads no number, and selects nothing by a boolean mask.

The test runs on a CPU and counts the operations for which a GPU's queue would have to be empty.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.attention import PACKED_SDPA
from higgs_trainer.model.families import family_of
from higgs_trainer.model.indexed_layers import index_layers
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, encode_rows, make_row, tiny_checkpoint

READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_consecutive",
}
BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}


class CountWaits(TorchDispatchMode):
    """Counts scalar reads, ``nonzero``, and indexing with boolean masks, by operation."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masks = name in BY_MASK and any(one is not None and one.dtype == torch.bool for one in args[1])
        # The backward of masked_scatter selects by the mask.
        if name in READS or masks or name.startswith("masked_scatter"):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def count_waits(monkeypatch):
    """Return a function that counts the waits of a call, ``Tensor.tolist`` included."""

    def count(call):
        mode = CountWaits()
        to_list = torch.Tensor.tolist

        def counted(tensor):
            mode.waits["tolist"] += 1
            return to_list(tensor)

        with monkeypatch.context() as patch, mode:
            patch.setattr(torch.Tensor, "tolist", counted)
            call()
        return dict(mode.waits)

    return count


def build_step(tmp_path, *, packed, lora, checkpointing, indexed=True):
    """Build a trainer and return a function that takes its first training step."""
    checkpoint = tiny_checkpoint()
    model = checkpoint.model
    model.set_attn_implementation(PACKED_SDPA)
    if lora:
        model = add_lora(model, family_of(model), r=2, lora_alpha=4)
    if indexed:
        index_layers(model)
    rows = [make_row(seed, num_frames=frames, ref_frames=3) for seed, frames in enumerate((5, 23, 2))]
    examples = encode_rows(rows, checkpoint)
    collate = (
        PackingCollator(NUM_CODEBOOKS)
        if packed
        else PaddingCollator(checkpoint.model.config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS)
    )
    trainer = HiggsAudioTrainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            report_to="none",
            activation_checkpointing=checkpointing,
            save_strategy="no",
        ),
        train_dataset=examples,
        data_collator=collate,
        family=family_of(checkpoint.model),
    )
    if checkpointing:
        model.activation_checkpointing_enable({})
    batch = collate([tuple(examples[i] for i in range(3))])
    counts = trainer.count_targets([batch])
    return lambda: trainer.training_step(trainer.model.train(), batch, counts)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_training_step_waits_for_nothing(tmp_path, count_waits, packed, lora, checkpointing):
    step = build_step(tmp_path, packed=packed, lora=lora, checkpointing=checkpointing)
    assert count_waits(step) == {}


@pytest.mark.parametrize("packed", [True, False])
def test_transformers_own_layers_wait_many_times(tmp_path, count_waits, packed):
    """The count is not zero because it counts nothing."""
    step = build_step(tmp_path, packed=packed, lora=True, checkpointing=True, indexed=False)
    waits = count_waits(step)
    assert sum(waits.values()) > 30
    assert {"nonzero", "tolist"} <= waits.keys() if packed else "index" in waits


def test_a_number_that_is_read_in_the_loss_is_counted(tmp_path, count_waits, monkeypatch):
    step = build_step(tmp_path, packed=True, lora=True, checkpointing=False)
    compute = HiggsAudioTrainer._sum_terms

    def read(*args, **kwargs):
        loss = compute(*args, **kwargs)
        assert loss.item() > 0
        return loss

    monkeypatch.setattr(HiggsAudioTrainer, "_sum_terms", read)
    assert count_waits(step) == {"_local_scalar_dense": 1}
