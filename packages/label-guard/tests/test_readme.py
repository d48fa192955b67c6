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
from label_guard.__main__ import make_parser
from label_guard.leak import POLICIES
from tiny_guarded import losses_of, make_model, make_trainer, next_token_loss

README = Path(__file__).parents[1] / "README.md"
# A line that the README shows, with the line number of any version of PEFT.
REPORTED = (
    r"labels <- PeftModelForCausalLM.forward \(peft/peft_model.py:\d+\), at layer 5 \(forward\), 2 times\. "
    r"PEFT's task classes pass arguments of their own to any model: make the adapter with task_type=None"
)


def run_example(containing: str, **names: Any) -> dict[str, Any]:
    """Execute the Python example that contains a text, with the given names. Returns its variables."""
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if containing in code
    )
    exec(compile(example, "README.md", "exec"), names)
    return names


def make_leaking_model() -> Any:
    return get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"]))


def test_the_readme_begins_with_the_error_message_that_python_raises() -> None:
    with pytest.raises(TypeError) as error:
        make_model()(labels=1)
    message = str(error.value).partition(".")[2]
    assert message in README.read_text().splitlines()[2]


def test_the_adapter_example_removes_the_cause(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="labels"):
        make_trainer(tmp_path, make_leaking_model(), kind=Trainer).train()
    adapter = run_example("task_type=None", LoraConfig=LoraConfig)["adapter"]
    trainer = make_trainer(tmp_path, get_peft_model(make_model(), adapter), kind=Trainer)
    trainer.train()
    assert len(losses_of(trainer)) == 2


def test_the_three_lines_let_the_stock_trainer_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_leaking_model()
    guard = run_example("guard = LabelGuard(model)", model=model)["guard"]
    trainer = make_trainer(tmp_path, model, kind=Trainer)
    trainer.train()
    assert len(losses_of(trainer)) == 2
    (line,) = re.findall(r"`(print\(\*guard.leaks.*?)`", README.read_text())
    capsys.readouterr()
    exec(line, {"guard": guard})
    assert re.fullmatch(REPORTED, capsys.readouterr().out.strip())


def test_the_mixin_example_trains_an_adapter_of_peft_and_names_it(tmp_path: Path) -> None:
    kind = run_example("class GuardedTrainer", Trainer=Trainer)["GuardedTrainer"]
    trainer = make_trainer(tmp_path, make_leaking_model(), kind=kind)
    trainer.train()
    (leak,) = trainer.guard.leaks
    assert re.fullmatch(REPORTED, str(leak))


def test_the_owner_example_gets_the_labels_in_its_targets(tmp_path: Path) -> None:
    names = run_example("class GuardedTrainer", Trainer=Trainer)
    kind = run_example("class OwnLoss", **names, my_loss=next_token_loss)["OwnLoss"]
    trainer = make_trainer(tmp_path, make_leaking_model(), kind=kind, compute_loss_func=None)
    trainer.train()
    assert len(losses_of(trainer)) == 2


def test_the_loop_example_computes_the_loss_of_the_diverted_labels() -> None:
    model = nn.Linear(3, 2)
    batch = {"input": torch.ones(1, 3), "labels": torch.zeros(1, 2)}
    names = {"model": model, "batch": batch, "criterion": nn.functional.mse_loss, "guard": LabelGuard(model)}
    names = run_example("guard.pop_targets()", **names)
    assert torch.equal(names["loss"], model(batch["input"]).square().mean())


def test_the_contract_example_is_a_contract_of_a_guard() -> None:
    contract = run_example("Contract(")["contract"]
    assert isinstance(contract, Contract)
    assert LabelGuard(make_model(), contract).contract is contract


def test_the_options_in_the_readme_are_those_of_the_command() -> None:
    table = README.read_text().partition("| option,")[2].partition("\n\n")[0]
    shown = set(re.findall(r"`(--?\w+)", table))
    options = {option for action in make_parser()._actions for option in action.option_strings}
    assert shown == options - {"-h", "--help"}
    assert set(re.findall(r"--policy (\w+)", table)) == set(POLICIES)


def test_the_files_that_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert len(links) == 2
    assert all((README.parent / link).is_file() for link in links)
