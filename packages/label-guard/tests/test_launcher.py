"""``python -m label_guard`` runs a script as Python would, guards what it trains, and says what it found."""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, reload
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers
from accelerate import Accelerator
from transformers import Trainer

import label_guard
from label_guard import LabelLeakError
from label_guard.__main__ import main
from label_guard.import_hook import ImportHook

# A script without torch, so that a new process takes some 50 ms.
PLAIN_SCRIPT = """
import sys
print(sys.argv, sys.path[0], __name__, __file__, __doc__, __package__, __cached__, getattr(__spec__, "name", None))
print("torch" in sys.modules, "transformers" in sys.modules, "accelerate" in sys.modules)
print(vars(sys.modules["__main__"]) is globals(), type(__loader__).__name__)
if "--raise" in sys.argv:
    raise ValueError("an error of the script")
if "--exit" in sys.argv:
    sys.exit(int(sys.argv[-1]))
"""
# A training script in the shape that dies with "unexpected keyword argument 'labels'".
TRAINING = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from tiny_guarded import StrictLM, gpt2_config, make_rows, make_trainer
from transformers import PrinterCallback, Trainer

torch.manual_seed(0)
task = sys.argv[1] if sys.argv[1:] else None
adapter = LoraConfig(task_type=task, target_modules=["c_attn"], init_lora_weights=False)
model = get_peft_model(StrictLM(gpt2_config()), adapter)
trainer = make_trainer(sys.path[0], model, kind=Trainer)
trainer.remove_callback(PrinterCallback)
trainer.train()
print([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
print(sum(weight.double().sum().item() for weight in model.parameters()))
"""
# Trainer passes the number of items to a wrapper with **kwargs, and leaves it to the model to divide the loss by it.
ACCUMULATION = """
import sys
from tiny_guarded import KwargsWrapper, StrictLM, make_model, make_trainer, next_token_loss
from transformers import PrinterCallback, Trainer


class MeanLM(StrictLM):
    def forward(self, input_ids=None, attention_mask=None, labels=None):
        outputs = super().forward(input_ids, attention_mask)
        if labels is not None:
            outputs["loss"] = next_token_loss(outputs, labels)
        return outputs


model = KwargsWrapper(make_model(MeanLM))
options = {"compute_loss_func": None, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}
if "smooth" in sys.argv:
    options["label_smoothing_factor"] = 0.1
trainer = make_trainer(sys.path[0], model, kind=Trainer, **options)
if "no_count" in sys.argv:
    trainer.model_accepts_loss_kwargs = False
trainer.remove_callback(PrinterCallback)
trainer.train()
print([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
print(sum(weight.double().sum().item() for weight in model.parameters()))
"""
LOOP = """
import torch
from accelerate import Accelerator
from torch import nn

torch.manual_seed(0)
model = nn.Linear(3, 2)
accelerator = Accelerator(cpu=True)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
for step in range(3):
    batch = {"input": torch.ones(4, 3), "labels": torch.zeros(4, 2)}
    loss = nn.functional.mse_loss(model(**batch), batch["labels"])
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    print(loss.item())
"""


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(label_guard.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments",
    [["a", "--policy", "raise"], ["-m", "--exit", "7"], ["--raise"]],
    ids=["ends", "exits", "raises"],
)
@pytest.mark.parametrize("how", [["scripts/plain.py"], ["-m", "scripts.plain"]], ids=["script", "module"])
def test_the_script_sees_what_it_sees_under_python(
    tmp_path: Path, arguments: list[str], how: list[str]
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "plain.py").write_text(PLAIN_SCRIPT)
    expected = run_python(tmp_path, *how, *arguments)
    guarded = run_python(tmp_path, "-m", "label_guard", "--policy", "watch", *how, *arguments)
    assert guarded.stdout == expected.stdout
    assert guarded.stdout.startswith("['")
    assert guarded.returncode == expected.returncode
    assert ("ValueError: an error of the script" in guarded.stderr) == ("--raise" in arguments)
    assert "label-guard: nothing was guarded" in guarded.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the script to run"),
        (["missing.py"], "missing.py is not a file"),
        (["--policy", "stop", "train.py"], "invalid choice: 'stop'"),
        (["--report", "missing/report.json", __file__], "its folder does not exist"),
        (["--report", ".", __file__], "is a folder. Name a file"),
        (["--report", "", __file__], "is a folder. Name a file"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_runs(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["label_guard", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err


PATCHED = {Trainer: ("__init__", "train", "evaluate", "predict"), Accelerator: ("prepare", "prepare_model")}
Launch = Callable[..., tuple[str, str]]


@pytest.fixture
def launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Launch]:
    """Do in this process what ``python -m label_guard OPTIONS script.py ARGUMENTS`` does; return stdout and stderr."""
    for kind, names in PATCHED.items():
        for name in names:
            monkeypatch.setattr(kind, name, getattr(kind, name))
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", lambda function, *args: at_exit.append(lambda: function(*args)))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    logger = logging.getLogger("label_guard")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)

    def run(program: str, *options: str, arguments: tuple[str, ...] = ()) -> tuple[str, str]:
        script = tmp_path / "script.py"
        script.write_text(program)
        monkeypatch.setattr(sys, "argv", ["label_guard", *options, str(script), *arguments])
        try:
            main()
        finally:
            for function in at_exit:
                function()
        return capsys.readouterr()

    yield run
    logger.setLevel(logging.NOTSET)


def read_run(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_script_with_a_trainer_trains_as_without_its_leak(launch: Launch, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    clean, _ = launch(TRAINING)
    guarded, error = launch(TRAINING, "--report", str(report), arguments=("CAUSAL_LM",))
    assert guarded == clean
    assert "labels <- PeftModelForCausalLM.forward (peft/peft_model.py:" in error
    assert "label-guard: PeftModelForCausalLM in Trainer" in error
    found = read_run(report)
    assert found["schema"] == "label-guard/run/1"
    assert (found["command"][1:], found["policy"], found["not_guarded"]) == (["CAUSAL_LM"], "divert", [])
    (model,) = found["models"]
    (leak,) = model["report"]["leaks"]
    assert (model["name"], leak["key"], leak["count"]) == ("PeftModelForCausalLM in Trainer", "labels", 2)
    assert [file.name for file in tmp_path.glob("report*")] == ["report.json"]


@pytest.mark.skipif(
    transformers.__version__.startswith("4.46."), reason="the Trainer of 4.46 counts no targets for a wrapper"
)
@pytest.mark.parametrize("smooth", [(), ("smooth",)], ids=["mean", "smoothed"])
def test_the_loss_of_a_model_that_does_not_count_is_divided_from_the_first_step_on(
    launch: Launch, smooth: tuple[str, ...]
) -> None:
    expected, _ = launch(ACCUMULATION, arguments=("no_count", *smooth))
    printed, error = launch(ACCUMULATION, arguments=smooth)
    assert "num_items_in_batch <- " in error
    assert printed == expected


def test_a_plain_loop_with_accelerate_is_guarded(launch: Launch) -> None:
    printed, error = launch(LOOP)
    losses = [float(line) for line in printed.split()]
    assert losses == sorted(losses, reverse=True)
    assert "label-guard: Linear in Accelerator.prepare" in error
    assert "labels x3" in error
    assert "script.py:12" in error


def test_under_the_policy_raise_the_script_stops_and_the_source_is_named(
    launch: Launch, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    with pytest.raises(LabelLeakError, match=r"labels <- <module> \(.*script.py:12\)"):
        launch(LOOP, "--policy", "raise", "--report", str(report))
    (model,) = read_run(report)["models"]
    assert [leak["count"] for leak in model["report"]["leaks"]] == [1]


REPLACED = """
import gc, weakref
from accelerate import Accelerator
from torch import nn, ones

accelerator = Accelerator(cpu=True)
first = accelerator.prepare(nn.Linear(3, 2))
accelerator.free_memory()
gone = weakref.ref(first)
del first
gc.collect()
print(gone() is None)
model = accelerator.prepare(accelerator.prepare_model(nn.Sequential(nn.Linear(3, 2))))
model(input=ones(1, 3), labels=1)
"""


def test_a_model_that_replaces_another_is_guarded_and_the_first_can_be_freed(
    launch: Launch, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    printed, _ = launch(REPLACED, "--report", str(report))
    assert printed == "True\n"
    models = read_run(report)["models"]
    assert [model["name"] for model in models] == [
        "Linear in Accelerator.prepare",
        "Sequential in Accelerator.prepare_model",
    ]
    assert [len(model["report"]["leaks"]) for model in models] == [0, 1]


FORWARD_REPLACED = """
from accelerate import Accelerator
from torch import nn, ones

model = nn.Linear(3, 2)
accelerator = Accelerator(cpu=True)
accelerator.prepare_model(model)
guarded = model.forward
model.forward = lambda *args, **kwargs: guarded(*args, **kwargs, labels=1)
accelerator.prepare(model)
model(ones(1, 3))
"""


def test_a_forward_that_another_tool_replaced_leaves_one_guard_for_the_model(
    launch: Launch, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    launch(FORWARD_REPLACED, "--report", str(report))
    (model,) = read_run(report)["models"]
    assert [leak["count"] for leak in model["report"]["leaks"]] == [1]


GUARDS_ITSELF = """
import sys
from accelerate import Accelerator
from label_guard import LabelGuard, LabelGuardMixin
from tiny_guarded import GuardedTrainer, make_model, make_trainer
from torch import nn

model = nn.Linear(3, 2)
guard = LabelGuard(model)
Accelerator(cpu=True).prepare(model)
print(guard.is_attached())
trainer = make_trainer(sys.path[0], make_model())
trainer.train()
print(trainer.guard.is_attached())
"""


def test_guards_that_the_script_attaches_itself_stay_and_are_reported(launch: Launch, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    printed, _ = launch(GUARDS_ITSELF, "--report", str(report))
    assert (printed.splitlines()[0], printed.splitlines()[-1]) == ("True", "True")
    assert [model["name"] for model in read_run(report)["models"]] == [
        "Linear in Accelerator.prepare",
        "StrictLM in GuardedTrainer",
    ]


def test_a_model_that_cannot_be_guarded_is_named_and_the_script_runs(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no guard today")

    monkeypatch.setattr("label_guard.guard.LabelGuard", fail)
    printed, error = launch(LOOP.replace("**batch", 'batch["input"]'))
    assert len(printed.split()) == 3
    assert error.splitlines()[-1] == (
        "label-guard: not guarded: Linear in Accelerator.prepare: RuntimeError: no guard today"
    )


def test_only_the_first_rank_prints_and_writes(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    printed, error = launch("print(1)", "--report", str(tmp_path / "report.json"))
    assert (printed, error) == ("1\n", "")
    assert not (tmp_path / "report.json").exists()


def test_a_module_is_patched_each_time_it_is_executed_and_its_loader_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooked_module.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    patched: list[ModuleType] = []
    hook = ImportHook({"hooked_module": patched.append})
    hook.install()
    try:
        # A search without an import, as packages do that look for an optional one.
        assert find_spec("hooked_module") is not None
        assert not patched
        module = import_module("hooked_module")
        assert patched == [module]
        assert "exec_module" not in vars(module.__loader__)
        reload(module)
        assert patched == [module, module]
        hook.remove()
        hook.install()
        assert patched == [module] * 3
    finally:
        hook.remove()
        del sys.modules["hooked_module"]
