"""For any batch, wherever a key is added: no leak reaches the model, no value is lost, errors name the key."""

from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from label_guard import Contract, LabelGuard, LabelLeakError, ModelInputs

INPUTS = ("input_ids", "attention_mask", "codes")
# Both an input and a target.
SHARED = ("audio_label_ids",)
TARGETS = ("labels", "audio_labels")
METADATA = ("utterance_ids",)
UNLISTED_LABELS = ("label", "label_ids", "shift_labels", "start_positions", "num_items_in_batch")
UNKNOWN = ("speed", "speaker", "inputs")
KEYS = INPUTS + SHARED + TARGETS + METADATA + UNLISTED_LABELS + UNKNOWN

CONTRACT = Contract("Echo", frozenset(INPUTS + SHARED), frozenset(TARGETS + SHARED), frozenset(METADATA))


class Echo(nn.Module):
    """Returns whatever it is given, so that the test sees what reached the model."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


class Positional(Echo):
    """An ``Echo`` whose second positional parameter is ``labels``."""

    def forward(self, input_ids: Any = None, labels: Any = None, codes: Any = None, **kwargs: Any) -> Any:
        named = {"input_ids": input_ids, "labels": labels, "codes": codes}
        return (), {key: value for key, value in named.items() if value is not None} | kwargs


VALUES = (None, torch.zeros(2), torch.ones(2), torch.ones(3), "text")

values = st.sampled_from(VALUES)
entries = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)


class Case(NamedTuple):
    batch: dict[str, Any]
    wrap: str
    injections: list[tuple[int, str, Any]]
    layers: frozenset[int]
    positions: int


cases = st.builds(
    Case,
    batch=entries,
    wrap=st.sampled_from(["dict", "UserDict", "nested", "attributes"]),
    injections=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(KEYS), values), max_size=3),
    layers=st.sets(st.integers(1, 4)).map(lambda layers: frozenset(layers) | {5}),
    positions=st.integers(0, 3),
)


def shape_batch(batch: dict[str, Any], wrap: str) -> Any:
    """Return the batch in one of its forms, with a known key so that it is never empty."""
    batch = {"input_ids": VALUES[1]} | batch
    if wrap == "UserDict":
        return UserDict(batch)
    if wrap == "nested":
        half = len(batch) // 2
        items = list(batch.items())
        return dict(items[:half]) | {"rest": dict(items[half:])}
    if wrap == "attributes":
        holder = type("Batch", (), {})()
        vars(holder).update(batch)
        return holder
    return batch


def inject(held: dict[str, Any], case: Case, layer: int) -> dict[str, Any]:
    """Add keys before a layer, as a user's code would. A None does not overwrite a value."""
    held = dict(held)
    for at, key, value in case.injections:
        if at == layer and (value is not None or key not in held):
            held[key] = value
    return held


def drive(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pass a batch through the layers and add keys before each. Returns what the model saw, and the targets."""
    model = Positional() if case.positions else Echo()
    guard = LabelGuard(model, CONTRACT, layers=case.layers)
    inputs = ModelInputs(CONTRACT.flatten(shape_batch(case.batch, case.wrap)))
    for layer in (1, 2, 3, 4):
        inputs = guard.filter(
            layer, ModelInputs(inject(inputs, case, layer), inputs.targets, inputs.metadata)
        )
    call = inject(inputs, case, 5)
    names = ("input_ids", "labels", "codes")[: case.positions]
    with guard.diverting_to(inputs.targets):
        args = [call.pop(name, None) for name in names]
        _, seen = model(*args, **call)
    return seen, inputs.targets


def error_of(case: Case) -> LabelLeakError | None:
    try:
        drive(case)
    except LabelLeakError as error:
        return error
    return None


@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases)
def test_no_leak_reaches_the_model_and_no_value_is_lost(case: Case) -> None:
    held: dict[str, list[Any]] = {
        key: [value] for key, value in ({"input_ids": VALUES[1]} | case.batch).items()
    }
    for _, key, value in sorted(case.injections, key=lambda injection: injection[0]):
        held.setdefault(key, []).append(value)
    if error := error_of(case):
        named = [key for key in held if repr(key) in str(error) or key in error.keys]
        assert any(is_due(key, held[key]) for key in named), error
        return
    seen, targets = drive(case)
    assert set(seen) <= CONTRACT.inputs
    assert all(value is None for key in UNKNOWN for value in held.get(key, [])), (
        "an unknown key did not raise"
    )
    for key, values_of_key in held.items():
        if key in CONTRACT.inputs and values_of_key[-1] is not None:
            assert any(seen[key] is value for value in values_of_key), key
        elif (
            key not in CONTRACT.inputs
            and CONTRACT.is_target(key)
            and any(value is not None for value in values_of_key)
        ):
            assert any(targets[key] is value for value in values_of_key if value is not None), key


@settings(max_examples=200, deadline=None)
@given(entries, values)
def test_a_shared_key_reaches_the_model_and_the_loss(batch: dict[str, Any], codes: Any) -> None:
    batch = {key: value for key, value in batch.items() if key not in UNKNOWN} | {SHARED[0]: codes}
    seen, targets = drive(Case(batch, "dict", [], frozenset({1, 5}), 0))
    assert seen[SHARED[0]] is codes
    assert targets[SHARED[0]] is codes


def is_due(key: str, held: list[Any]) -> bool:
    """Whether an error about a key is right: the contract does not list it, or it came with two different values."""
    values = [value for value in held if value is not None]
    differ = any(not same(values[0], value) for value in values[1:])
    return key in UNKNOWN or (differ and key not in METADATA)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and torch.equal(left, right)
    return left is right


def test_without_the_guard_the_properties_would_fail() -> None:
    """A control: an ``Echo`` without a guard lets a label through, and an unlisted key raises with one."""
    _, seen = Echo()(labels=1)
    assert not set(seen) <= CONTRACT.inputs
    with pytest.raises(LabelLeakError, match="speed"):
        drive(Case({"speed": VALUES[1]}, "dict", [], frozenset({1, 5}), 0))
