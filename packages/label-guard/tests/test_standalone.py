"""The guard on models from transformers and on a plain module, under transformers 4.46 and 5."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Model, Trainer, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

import label_guard
from label_guard import LabelGuard, LabelGuardMixin
from tiny_guarded import gpt2_config, losses_of, make_rows, make_trainer

IDS = torch.arange(5).unsqueeze(0)
ALLOWED = {"label_guard", "torch"}


def test_importing_the_guard_imports_only_torch() -> None:
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "from label_guard import *\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert set(printed.split()) - set(sys.stdlib_module_names) <= ALLOWED


def test_a_training_loop_without_a_trainer() -> None:
    model = nn.Linear(3, 2)
    guard = LabelGuard(model)
    assert guard.contract.inputs == {"input"}
    outputs = model(input=torch.ones(1, 3), labels=torch.zeros(1, 2))
    nn.functional.mse_loss(outputs, guard.pop_targets()["labels"]).backward()
    assert model.weight.grad is not None
    with pytest.raises(TypeError, match="speaker"):
        model(torch.ones(1, 3), speaker=3)
    guard.remove()
    with pytest.raises(TypeError, match="labels"):
        model(torch.ones(1, 3), labels=1)


def seen_by(model: nn.Module) -> list[set[str]]:
    """Record the keys of each call that reaches a model's own forward, beneath a guard that is attached later."""
    calls: list[set[str]] = []
    original = type(model).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(set(kwargs))
        return original(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    model.forward = forward.__get__(model)
    return calls


class Backbone(GPT2Model):
    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None:
        """Do nothing; PEFT's class expects the method, and transformers 5 has it on models with a head only."""


def make_backbone() -> nn.Module:
    return get_peft_model(
        Backbone(gpt2_config()), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"])
    )


def test_gpt2_without_its_head_runs_under_peft_causal_lm() -> None:
    """The oldest public report of the error: a backbone that takes no labels, in PEFT's class that passes them."""
    model = make_backbone()
    calls = seen_by(model.get_base_model())
    guard = LabelGuard(model)
    model(input_ids=IDS, labels=IDS)
    assert len(calls) == 1
    assert not calls[0] & {"labels", "num_items_in_batch"}
    assert torch.equal(guard.pop_targets()["labels"], IDS)
    assert {leak.key for leak in guard.leaks} == {"labels"}


class BackboneTrainer(LabelGuardMixin, Trainer):
    def compute_guarded_loss(
        self, model: nn.Module, model_inputs: Any, targets: Any, metadata: Any, num_items_in_batch: Any
    ) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs)
        return (outputs[0].mean(dim=-1) - targets["labels"]).square().mean(), outputs


def test_gpt2_without_its_head_trains_evaluates_and_predicts(tmp_path: Path) -> None:
    def collate(rows: Any) -> dict[str, Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids / 37}

    model = make_backbone()
    options = {"compute_loss_func": None, "data_collator": collate, "prediction_loss_only": True}
    trainer = make_trainer(tmp_path, model, kind=BackboneTrainer, **options)
    calls = seen_by(model.get_base_model())
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert "test_loss" in trainer.predict(make_rows(4)).metrics
    assert len(losses_of(trainer)) == 2
    assert len(calls) == 4
    assert not any("labels" in call for call in calls)


def test_a_whisper_encoder_gives_the_same_output() -> None:
    config = WhisperConfig(
        d_model=12, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8, num_mel_bins=5
    )
    model = WhisperEncoder(config).eval()
    speech = torch.randn(1, 5, 2 * config.max_source_positions)
    expected = model(speech)[0]
    calls = seen_by(model)
    guard = LabelGuard(model)
    assert torch.equal(model(input_features=speech, labels=IDS)[0], expected)
    assert calls == [{"input_features"}]
    assert guard.is_attached(model)


@pytest.mark.parametrize(
    "file", sorted(Path(label_guard.__file__).parent.glob("*.py")), ids=lambda file: file.name
)
def test_the_package_parses_as_python_3_10(file: Path) -> None:
    ast.parse(file.read_text(), str(file), feature_version=(3, 10))
