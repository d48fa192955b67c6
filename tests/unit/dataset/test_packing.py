"""The plan of an epoch: full packs, each example once, equally many for every epoch and rank, resumable."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from higgs_trainer.dataset.code_noise import NoisyExamples
from higgs_trainer.dataset.collator import PackingCollator
from higgs_trainer.dataset.packing import BatchPlan, PackPlan, PlannedExamples, measure_tokens
from higgs_trainer.errors import RecipeError
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, NUM_CODES, encode_rows, make_row, tiny_checkpoint


def draw_speech_lengths(num_examples, seed=0):
    """Draw lengths in tokens of clips of 2 to 15 s, lognormal: 25 columns per second, and text."""
    seconds = np.random.default_rng(seed).lognormal(np.log(5.5), 0.5, size=4 * num_examples)
    seconds = seconds[(seconds >= 2) & (seconds <= 15)][:num_examples]
    return (seconds * 25 + 9 + seconds * 3.5 + 30).astype(int).tolist()


def indices_of(groups):
    return sorted(index for group in groups for index in group)


@pytest.mark.parametrize("num_examples", [1000, 7001])
def test_packs_are_full_and_never_too_full(num_examples):
    """The requirement is 97%; best fit reaches more than 99%."""
    lengths = draw_speech_lengths(num_examples)
    plan = PackPlan(lengths, tokens_per_pack=4096, seed=0)
    for epoch in range(5):
        packs = plan.build_groups(epoch)
        assert len(packs) == len(plan)
        assert indices_of(packs) == list(range(num_examples))
        tokens = [sum(lengths[i] for i in pack) for pack in packs]
        assert max(tokens) <= 4096
        assert sum(tokens) / (4096 * len(packs)) >= 0.985


def test_an_epochs_plan_depends_on_seed_and_epoch_alone():
    lengths = draw_speech_lengths(300)
    plan, same = (PackPlan(lengths, tokens_per_pack=4096, seed=3) for _ in range(2))
    later = plan.build_groups(2)
    assert same.build_groups(0) != later
    assert same.build_groups(2) == later
    assert PackPlan(lengths, tokens_per_pack=4096, seed=4).build_groups(2) != later
    together = [{pair for pack in plan.build_groups(epoch) for pair in pairwise(pack)} for epoch in (0, 1)]
    assert len(together[0] & together[1]) < 0.2 * len(together[0])


def test_equal_lengths_go_together_differently_each_epoch():
    """With equal lengths, only the random order can distinguish the plans of two epochs."""
    plan = PackPlan([100] * 60, tokens_per_pack=300, seed=0)
    assert {frozenset(pack) for pack in plan.build_groups(0)} != {
        frozenset(pack) for pack in plan.build_groups(1)
    }


@pytest.mark.parametrize(("num_ranks", "accumulation"), [(2, 1), (3, 5), (1, 7), (2, 16)])
def test_every_rank_and_step_gets_equally_many_packs_and_none_is_empty(num_ranks, accumulation):
    lengths = draw_speech_lengths(101)
    plan = PackPlan(lengths, tokens_per_pack=4096, seed=0, num_ranks=num_ranks, accumulation=accumulation)
    for epoch in range(3):
        packs = plan.build_groups(epoch)
        assert len(packs) == len(plan)
        assert len(packs) % (num_ranks * accumulation) == 0
        assert min(map(len, packs)) > 0
        assert indices_of(packs) == list(range(101))


def test_with_too_few_examples_the_ranks_come_before_the_steps():
    assert len(PackPlan([10] * 5, tokens_per_pack=100, seed=0, num_ranks=2, accumulation=4)) == 2
    with pytest.raises(RecipeError, match="5 examples cannot be shared among 6"):
        PackPlan([10] * 5, tokens_per_pack=100, seed=0, num_ranks=6)


@pytest.mark.parametrize(("num_examples", "num_ranks"), [(9, 1), (9, 2), (17, 3), (8, 2)])
def test_without_packing_batches_are_even_and_hold_each_example_once(num_examples, num_ranks):
    plan = BatchPlan(num_examples, batch_size=4, seed=0, num_ranks=num_ranks)
    for epoch in range(3):
        groups = plan.build_groups(epoch)
        assert len(groups) == len(plan)
        assert indices_of(groups) == list(range(num_examples))
        sizes = [sum(map(len, groups[start : start + 4])) for start in range(0, len(groups), 4)]
        assert len(sizes) % num_ranks == 0
        assert max(sizes) - min(sizes) <= 1
    assert plan.build_groups(0) != plan.build_groups(1)


CHECKPOINT = tiny_checkpoint()


def examples_of(rows):
    return encode_rows(rows, CHECKPOINT)


def test_an_example_longer_than_a_pack_is_named():
    examples = examples_of(
        [make_row(1, num_frames=5), make_row(2, num_frames=90), make_row(3, num_frames=70)]
    )
    lengths = [len(examples[i].input_ids) for i in range(3)]
    assert measure_tokens(examples, tokens_per_pack=max(lengths)) == lengths
    with pytest.raises(RecipeError, match=rf"100, less than clip-2 \({lengths[1]} tokens\), clip-3"):
        measure_tokens(examples, tokens_per_pack=100)


def test_a_pack_is_the_concatenation_of_its_examples():
    examples = [examples_of([make_row(seed, num_frames=seed + 2)])[0] for seed in (1, 4)]
    batch = PackingCollator(NUM_CODEBOOKS)([tuple(examples), ()])
    first = len(examples[0].input_ids)
    assert "attention_mask" not in batch
    assert batch["position_ids"][0].tolist() == [*range(first), *range(len(examples[1].input_ids))]
    for key, name in [("input_ids", "input_ids"), ("logits_to_keep", "keep_T")]:
        assert torch.equal(batch[key][0, first:], getattr(examples[1], name)), key
    columns = len(examples[0].columns_PK)
    assert torch.equal(batch["audio_input_ids"][0, columns:], examples[1].columns_PK)
    assert torch.equal(batch["audio_labels"][0, columns:], examples[1].targets_PK)
    assert batch["audio_input_ids_mask"].all()
    assert batch["utterance_ids"] == ["clip-1", "clip-4"]


def test_the_epoch_reaches_the_noise():
    noisy = NoisyExamples(
        examples_of([make_row(1, num_frames=40)]), code_noise=0.9, num_codes=NUM_CODES, seed=0
    )
    planned = PlannedExamples(noisy, PackPlan([100], tokens_per_pack=200, seed=0))
    first = planned[0][0].columns_PK
    planned.set_epoch(1)
    assert not torch.equal(planned[0][0].columns_PK, first)


class Watch(TrainerCallback):
    """Stops the run after ``stop_at`` steps."""

    def __init__(self, stop_at):
        self.stop_at = stop_at

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.stop_at


def train(output_dir, *, stop_at=None, resume=False):
    """Train three epochs of six packs, two per step; return utterances, losses, number of steps, number of packs."""
    examples = examples_of([make_row(seed, num_frames=2 + 3 * seed) for seed in range(11)])
    lengths = measure_tokens(examples, tokens_per_pack=260)
    plan = PackPlan(lengths, tokens_per_pack=260, seed=0, accumulation=2)
    seen = []
    collate = PackingCollator(NUM_CODEBOOKS)

    def collate_and_note(items):
        batch = collate(items)
        seen.append((batch["utterance_ids"], int(batch["audio_input_ids"].sum())))
        return batch

    trainer = HiggsAudioTrainer(
        model=tiny_checkpoint().model,
        args=TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=3,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            train_sampling_strategy="sequential",
            learning_rate=0.01,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=1,
            save_steps=1,
        ),
        train_dataset=PlannedExamples(
            NoisyExamples(examples, code_noise=0.5, num_codes=NUM_CODES, seed=0), plan
        ),
        data_collator=collate_and_note,
        family=HIGGS_AUDIO_V2,
        callbacks=[Watch(stop_at)],
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return seen, losses, trainer.state.max_steps, len(plan)


def test_a_resumed_run_continues_the_plan_in_the_middle_of_an_epoch(tmp_path):
    seen, losses, max_steps, num_packs = train(tmp_path / "whole")
    assert num_packs == 6
    steps_an_epoch = num_packs // 2
    assert max_steps == len(losses) == 3 * steps_an_epoch
    assert len(seen) == 3 * num_packs
    epochs = [
        [ids for ids, _ in seen[start : start + num_packs]] for start in range(0, 3 * num_packs, num_packs)
    ]
    for packs in epochs:
        assert sorted(name for pack in packs for name in pack) == sorted(f"clip-{i}" for i in range(11))
    assert epochs[0] != epochs[1] != epochs[2]
    # The first step of the second epoch.
    stop_at = steps_an_epoch + 1
    first_half, *_ = train(tmp_path / "stopped", stop_at=stop_at)
    assert first_half[: 2 * stop_at] == seen[: 2 * stop_at]
    second_half, resumed_losses, *_ = train(tmp_path / "stopped", resume=True)
    assert second_half == seen[2 * stop_at :]
    assert resumed_losses == losses
