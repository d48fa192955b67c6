"""A copy of a guarded model runs its own modules, and is guarded by itself. Threads do not mix their labels."""

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from label_guard import LabelGuard
from tiny_guarded import KwargsWrapper, make_model

IDS = torch.arange(5).unsqueeze(0)


def shallow(model: nn.Module) -> nn.Module:
    """Copy a model with a head of its own: the modules of a shallow copy are the original's."""
    twin = copy.copy(model)
    twin._modules = {**model._modules, "lm_head": copy.deepcopy(model.lm_head)}
    return twin


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": shallow,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "replica": lambda model: replicate(model),
}


def replicate(model: nn.Module) -> nn.Module:
    """Make a replica as ``nn.DataParallel`` does, on the CPU."""
    replica = model._replicate_for_data_parallel()
    replica._modules = {**model._modules, "lm_head": copy.deepcopy(model.lm_head)}
    return replica


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_runs_its_own_modules_and_is_guarded(kind: str) -> None:
    model = make_model().eval()
    LabelGuard(model)
    expected = model(IDS).logits
    twin = COPIES[kind](model)
    assert torch.equal(twin(IDS, labels=IDS).logits, expected)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert twin(IDS, labels=IDS).logits.abs().max() == 0
    assert model(IDS).logits.abs().max() > 0


@pytest.mark.parametrize("kind", ["copy", "deepcopy", "pickle"])
def test_a_copy_stays_guarded_when_the_guard_of_the_original_is_removed(kind: str) -> None:
    model = make_model()
    guard = LabelGuard(model)
    twin = COPIES[kind](model)
    guard.remove()
    twin(IDS, labels=IDS)
    with pytest.raises(TypeError):
        model(IDS, labels=IDS)
    second = LabelGuard(twin)
    twin(IDS, labels=IDS)
    assert len(second.leaks) == 1
    second.remove()
    with pytest.raises(TypeError):
        twin(IDS, labels=IDS)


def test_a_copy_of_an_unguarded_model_is_plain_again() -> None:
    model = make_model()
    LabelGuard(model).remove()
    assert not {"forward", "__reduce_ex__", "__deepcopy__"} & set(vars(model))
    with pytest.raises(TypeError):
        copy.deepcopy(model)(IDS, labels=IDS)


def test_leaks_of_a_deep_copy_are_in_the_ledger_of_the_guard() -> None:
    model = KwargsWrapper(make_model())
    guard = LabelGuard(model)
    copy.deepcopy(model)(input_ids=IDS, labels=IDS)
    assert torch.equal(guard.pop_targets()["labels"], IDS)
    assert [leak.key for leak in guard.leaks] == ["labels"]


class OwnCopy(nn.Module):
    """A model whose class says how it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, speech: Tensor) -> Tensor:
        return self.linear(speech)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = OwnCopy()
        twin.load_state_dict(self.state_dict())
        twin.was_copied = True
        return twin


def test_a_class_that_copies_itself_is_asked() -> None:
    model = OwnCopy()
    guard = LabelGuard(model)
    twin = copy.deepcopy(model)
    assert twin.was_copied
    assert guard.is_attached(model)
    assert torch.equal(twin(torch.ones(3), labels=1), model(torch.ones(3)))
    guard.remove()
    twin(torch.ones(3), labels=1)


def test_what_torch_saves_loads_without_the_guard() -> None:
    model = OwnCopy()
    LabelGuard(model)
    file = io.BytesIO()
    torch.save(nn.Sequential(nn.Linear(3, 3), model.linear), io.BytesIO())
    linear = nn.Linear(3, 2)
    LabelGuard(linear)
    torch.save(linear, file)
    assert b"label_guard" not in file.getvalue()
    program = (
        "import io, sys, torch; data = sys.stdin.buffer.read()\n"
        "model = torch.load(io.BytesIO(data), weights_only=False)\n"
        "assert 'label_guard' not in sys.modules\n"
        "print(tuple(model(torch.ones(3)).shape))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], input=file.getvalue(), capture_output=True, check=True
    )
    assert printed.stdout.strip() == b"(2,)"


def test_threads_on_one_guard_do_not_mix_their_labels() -> None:
    model = nn.Linear(3, 2)
    guard = LabelGuard(model)
    wrong: list[Any] = []
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        for step in range(50):
            labels = torch.tensor([number, step])
            barrier.wait()
            model(torch.ones(3), labels=labels)
            barrier.wait()
            targets = guard.pop_targets()
            if targets.get("labels") is not labels:
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(leak.count for leak in guard.leaks) == 200
