"""Train Boson's model with ``HiggsAudioTrainer``: what reaches it, what it learns, and what it must not learn."""

import dataclasses
import functools
import inspect
import math
from typing import Any

import pytest
import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from peft import LoraConfig, TaskType, get_peft_model
from transformers import TrainingArguments

from higgs_trainer.errors import LossError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import BOSON, Family
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.trainer import HiggsAudioTrainer
from label_guard import LabelLeakError
from tiny_boson import END, FreshSamples, make_collator, make_model, make_sample

HEADS = ("audio_decoder_proj.audio_lm_head", "audio_decoder_proj.text_lm_head")


def make_trainer(folder, model, samples, held_out=None, *, family: Family = BOSON, **arguments: Any):
    text = arguments.pop("text_weight", 1.0)
    policy = arguments.pop("guard_policy", "divert")
    arguments = {
        "max_steps": 50,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
    } | arguments
    return HiggsAudioTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            **arguments,
        ),
        train_dataset=samples,
        eval_dataset=held_out or samples,
        data_collator=make_collator(),
        family=family,
        weights=LossWeights(text=text),
        guard_policy=policy,
    )


def with_lora(*modules_to_save: str) -> Any:
    return add_lora(
        make_model(),
        BOSON,
        r=16,
        lora_alpha=32,
        target_modules="attention+audio_ffn",
        modules_to_save=modules_to_save,
    )


def losses(trainer: Any, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.fixture
def calls(monkeypatch):
    """Record the names of the arguments of each call of ``HiggsAudioModel.forward``."""
    seen: list[set[str]] = []
    original = HiggsAudioModel.forward

    @functools.wraps(original)
    def spy(self, *args, **kwargs):
        assert not args
        seen.append(set(kwargs))
        return original(self, *args, **kwargs)

    spy.__signature__ = inspect.signature(original)
    monkeypatch.setattr(HiggsAudioModel, "forward", spy)
    return seen


def test_lora_learns_one_batch_in_fifty_steps_and_the_model_gets_its_eleven_inputs(tmp_path, calls):
    samples = FreshSamples([1, 2], num_frames=7, ref_frames=5)
    trainer = make_trainer(tmp_path, with_lora(*HEADS), samples)
    trainer.train()
    assert len(losses(trainer)) == 50
    assert losses(trainer)[-1] < 0.1 * losses(trainer)[0]
    assert losses(trainer, "audio_loss")[-1] < 0.1 * losses(trainer, "audio_loss")[0]
    assert losses(trainer, "text_loss")[-1] < 0.1 * losses(trainer, "text_loss")[0]
    trainer.evaluate()
    trainer.predict(samples)
    assert len(calls) == 52
    assert all(names == BOSON.contract.inputs for names in calls)


@pytest.mark.parametrize("task_type", [TaskType.CAUSAL_LM, None])
def test_labels_that_peft_adds_do_not_reach_the_model(tmp_path, calls, task_type):
    """PEFT's CAUSAL_LM class passes ``labels`` in every call; without a task type it passes none."""
    config = LoraConfig(task_type=task_type, target_modules=["q_proj"])
    trainer = make_trainer(tmp_path, get_peft_model(make_model(), config), FreshSamples([1, 2]), max_steps=2)
    trainer.train()
    assert all("labels" not in names and "label_ids" not in names for names in calls)
    assert all(names >= BOSON.contract.inputs for names in calls)
    leaks = [str(leak) for leak in trainer.guard.leaks]
    assert bool(leaks) == (task_type is not None)
    assert all("labels" in leak and "PeftModelForCausalLM.forward" in leak for leak in leaks)


def test_policy_raise_names_the_source(tmp_path):
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=["q_proj"])
    model = get_peft_model(make_model(), config)
    trainer = make_trainer(tmp_path, model, FreshSamples([1, 2]), max_steps=1, guard_policy="raise")
    with pytest.raises(LabelLeakError, match=r"labels.*PeftModelForCausalLM\.forward"):
        trainer.train()


def test_without_layer_5_of_the_guard_the_model_raises(tmp_path):
    """A control for the tests above: it is the guard that prevents the error."""
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=["q_proj"])
    trainer = make_trainer(tmp_path, get_peft_model(make_model(), config), FreshSamples([1, 2]), max_steps=1)
    trainer.guard_layers = frozenset({1, 2, 3, 4})
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        trainer.train()


def test_accumulation_gives_the_same_losses_as_one_large_batch(tmp_path):
    samples = FreshLengths([3, 17, 5, 9])
    runs = []
    for size, steps in ((4, 1), (1, 4)):
        trainer = make_trainer(
            tmp_path / str(size),
            with_lora(),
            samples,
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=1.0,
        )
        trainer.train()
        runs.append(
            [losses(trainer, "audio_loss"), losses(trainer, "text_loss"), losses(trainer, "grad_norm")]
        )
    for once, accumulated in zip(*runs, strict=True):
        assert once == pytest.approx(accumulated, rel=1e-5)


class FreshLengths(torch.utils.data.Dataset):
    """Clips of very different lengths, created at each access."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Any:
        return make_sample(index, num_frames=self.lengths[index])


def unshifted(outputs: Any, model_inputs: Any, targets: Any) -> Any:
    """Align each column's logits with its own codes instead of the next ones, a mistake of published trainers."""
    aligned = BOSON.align(outputs, model_inputs, targets)
    supervised_P = (targets["label_audio_ids"].T != -100).any(dim=1)
    return dataclasses.replace(aligned, audio_logits_NKC=outputs.audio_logits[supervised_P])


@pytest.mark.parametrize("leaks", [False, True])
def test_random_codes_stay_at_chance_unless_targets_leak(tmp_path, leaks):
    """New random codes cannot be predicted, so a loss below ln(1024) shows that the model saw its targets."""
    family = dataclasses.replace(BOSON, align=unshifted) if leaks else BOSON
    trainer = make_trainer(
        tmp_path,
        with_lora(HEADS[0], "audio_codebook_embeddings"),
        FreshSamples(range(400), num_frames=61),
        family=family,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        text_weight=0.0,
    )
    trainer.train()
    held_out_loss = loss_over_codes(trainer, family, FreshSamples(range(1000, 1016), num_frames=61))
    chance = math.log(1024)
    if leaks:
        assert held_out_loss < 0.9 * chance
    else:
        assert held_out_loss == pytest.approx(chance, rel=0.02)


@torch.no_grad()
def loss_over_codes(trainer: Any, family: Family, samples: FreshSamples) -> float:
    """Compute the mean cross-entropy over codes, without the end of stream."""
    inputs = trainer._prepare_inputs(trainer.data_collator([samples[i] for i in range(len(samples))]))
    model = trainer.model.eval()
    aligned = family.align(model(**inputs), inputs, inputs.targets)
    targets_NK = aligned.audio_targets_NK.masked_fill(aligned.audio_targets_NK == END, -100)
    return float(
        torch.nn.functional.cross_entropy(aligned.audio_logits_NKC.flatten(0, 1), targets_NK.flatten())
    )


def test_a_second_epoch_over_samples_kept_in_memory_raises(tmp_path):
    """Boson's collator overwrites the placeholder's label with -100 in the sample itself.

    The next time it reads this as "do not train on this clip", so nothing is supervised from the second epoch on.
    """
    kept = [make_sample(seed) for seed in (1, 2)]
    trainer = make_trainer(tmp_path, with_lora(), kept, max_steps=2)
    with pytest.raises(LossError, match="no supervised audio cell in this step"):
        trainer.train()
