"""The Python examples of the README run, and stop what they say they stop."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer

from label_guard import Contract, LabelGuard
from tiny_guarded import make_model, make_trainer

README = Path(__file__).parents[1] / "README.md"


def run_example(containing: str, **names: Any) -> dict[str, Any]:
    """Execute the Python example that contains a text, with the given names. Returns its variables."""
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if containing in code
    )
    exec(compile(example, "README.md", "exec"), names)
    return names


def test_the_trainer_example_trains_an_adapter_of_peft_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = run_example("class GuardedTrainer", Trainer=Trainer)["GuardedTrainer"]
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"])
    trainer = make_trainer(tmp_path, get_peft_model(make_model(), adapter), kind=kind)
    trainer.train()
    capsys.readouterr()
    run_example("trainer.guard.leaks", trainer=trainer)
    printed = capsys.readouterr().out
    assert re.search(
        r"labels <- PeftModelForCausalLM.forward \(peft/peft_model.py:\d+\), at layer 5 \(forward\), 2 times\. "
        r"PEFT's task classes pass arguments of their own to any model: make the adapter with task_type=None",
        printed,
    )


def test_the_loop_example_computes_the_loss_of_the_diverted_labels() -> None:
    model = nn.Linear(3, 2)
    batch = {"input": torch.ones(1, 3), "labels": torch.zeros(1, 2)}
    names = run_example("guard.pop_targets()", model=model, batch=batch, criterion=nn.functional.mse_loss)
    assert torch.equal(names["loss"], model(batch["input"]).square().mean())


def test_the_contract_example_is_a_contract_of_a_guard() -> None:
    contract = run_example("Contract(")["contract"]
    assert isinstance(contract, Contract)
    assert LabelGuard(make_model(), contract).contract is contract


def test_the_readme_begins_with_the_error_message_that_python_raises() -> None:
    with pytest.raises(TypeError) as error:
        make_model()(labels=1)
    message = str(error.value).partition(".")[2]
    assert message in README.read_text().splitlines()[2]
