"""What a contract reads from a model's signature, and how it splits a batch of any type."""

from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature, GPT2LMHeadModel

from label_guard import Contract, LabelLeakError
from tiny_guarded import StrictLM, make_model

CONTRACT = Contract(
    name="family",
    inputs=frozenset({"input_ids", "attention_mask", "both"}),
    targets=frozenset({"labels", "both"}),
    metadata=frozenset({"utterance_ids"}),
)


@dataclass
class BatchWithMetadata:
    input_ids: Any
    labels: Any
    utterance_ids: Any


NamedTupleBatch = namedtuple("NamedTupleBatch", ["input_ids", "labels", "utterance_ids"])

BATCH_TYPES = {
    "dict": dict,
    "UserDict": UserDict,
    "BatchEncoding": BatchEncoding,
    "BatchFeature": BatchFeature,
    "dataclass": lambda fields: BatchWithMetadata(**fields),
    "namedtuple": lambda fields: NamedTupleBatch(**fields),
    "attributes": lambda fields: SimpleNamespace(**fields),
    "nested": lambda fields: {
        "model": {"input_ids": fields["input_ids"]},
        "loss": UserDict(labels=fields["labels"]),
        "utterance_ids": fields["utterance_ids"],
    },
    "nested named tuple": lambda fields: {"batch": NamedTupleBatch(**fields)},
    "nested attributes": lambda fields: {"outer": {"batch": SimpleNamespace(**fields)}},
    "nested dataclass": lambda fields: {"batch": BatchWithMetadata(**fields)},
}


@pytest.mark.parametrize("kind", BATCH_TYPES)
def test_a_batch_of_any_type_is_split(kind: str) -> None:
    fields = {"input_ids": torch.ones(2, 3), "labels": torch.zeros(2, 3), "utterance_ids": ["a", "b"]}
    model_inputs, targets, metadata = CONTRACT.split(BATCH_TYPES[kind](fields))
    assert model_inputs == {"input_ids": fields["input_ids"]}
    assert targets == {"labels": fields["labels"]}
    assert metadata == {"utterance_ids": ["a", "b"]}


def test_a_key_that_is_both_an_input_and_a_target_goes_to_both() -> None:
    codes = torch.arange(3)
    split = CONTRACT.split({"both": codes})
    assert split.model_inputs["both"] is codes
    assert split.targets["both"] is codes


def test_the_error_for_an_unlisted_key_names_it() -> None:
    with pytest.raises(LabelLeakError, match="does not list 'speed'") as caught:
        CONTRACT.split({"input_ids": 1, "speed": None})
    assert caught.value.keys == ("speed",)


def test_an_empty_mapping_under_an_unlisted_key_raises() -> None:
    with pytest.raises(LabelLeakError, match="'extras'"):
        CONTRACT.split({"input_ids": 1, "extras": {}})


@pytest.mark.parametrize("key", ["label", "label_ids", "shift_labels", "start_positions", "emotion_labels"])
def test_an_unlisted_key_with_the_name_of_a_label_is_a_target(key: str) -> None:
    assert CONTRACT.split({key: 1}).targets == {key: 1}


def test_a_label_that_is_none_is_left_out() -> None:
    assert CONTRACT.split({"labels": None}) == ({}, {}, {})


@pytest.mark.parametrize("key", ["labels", "targets", "emotion_labels"])
def test_a_mapping_under_the_name_of_a_target_is_a_target_whatever_it_holds(key: str) -> None:
    """Unpacked, its keys would be taken for inputs of the model."""
    for inner in ({"input_ids": 1}, {"labels": 1}, {"speed": 1}, UserDict(input_ids=1)):
        assert CONTRACT.split({key: inner}) == ({}, {key: inner}, {})
        assert CONTRACT.flatten({key: inner}) == {key: inner}


@pytest.mark.parametrize("key", ["input_ids", "labels", "utterance_ids"])
def test_a_key_at_two_depths_with_two_values_raises(key: str) -> None:
    batch = {key: [1], "inner": {"deeper": SimpleNamespace(**{key: [2]})}}
    for split in (CONTRACT.split, CONTRACT.flatten):
        with pytest.raises(LabelLeakError, match=f"{key!r} twice"):
            split(batch)
    assert CONTRACT.flatten({key: None, "inner": {key: [2]}}) == {key: [2]}


def test_two_arrays_under_one_key_are_compared() -> None:
    batch = {"utterance_ids": np.arange(3), "inner": {"utterance_ids": np.arange(3)}}
    assert CONTRACT.split(batch).metadata["utterance_ids"] is batch["utterance_ids"]
    with pytest.raises(LabelLeakError, match="twice"):
        CONTRACT.split({"labels": [np.arange(3)], "inner": {"labels": [np.zeros(3)]}})


def test_two_different_values_for_one_key_raise() -> None:
    with pytest.raises(LabelLeakError, match="'labels' twice"):
        CONTRACT.split({"labels": torch.ones(2), "inner": {"labels": torch.zeros(2)}})
    same = CONTRACT.split({"labels": torch.ones(2), "inner": {"labels": torch.ones(2)}})
    assert torch.equal(same.targets["labels"], torch.ones(2))


@pytest.mark.parametrize("batch", [torch.ones(2), [1, 2], (1, 2), "text", 3, None])
def test_a_batch_without_named_fields_raises(batch: Any) -> None:
    with pytest.raises(TypeError, match="named fields"):
        CONTRACT.split(batch)


def test_a_key_that_is_not_a_string_raises() -> None:
    with pytest.raises(LabelLeakError, match="not a string: 3"):
        CONTRACT.split({3: 1})


def test_the_contract_of_a_model_that_takes_no_labels() -> None:
    contract = Contract.of(make_model())
    assert contract.name == "StrictLM"
    assert {"input_ids", "attention_mask", "inputs_embeds"} <= contract.inputs
    assert {"labels", "label", "label_ids", "num_items_in_batch"} <= contract.targets
    assert not contract.inputs & contract.targets


def test_labels_are_an_input_of_a_model_that_takes_them() -> None:
    contract = Contract.of(make_model(GPT2LMHeadModel))
    assert "labels" in contract.inputs
    assert "label_ids" in contract.targets


class Typed(nn.Module):
    def forward(self, speech: Tensor, *, rate: int = 1) -> Tensor:
        return speech


class Open(nn.Module):
    def forward(self, **kwargs: Any) -> Any:
        return kwargs


def test_the_contract_of_a_plain_module() -> None:
    assert Contract.of(Typed()).inputs == {"speech", "rate"}


def test_the_error_for_an_open_signature_shows_how_to_write_a_contract() -> None:
    with pytest.raises(
        ValueError, match=r'Open.forward takes \*\*kwargs.*Contract\("Open", inputs=frozenset'
    ):
        Contract.of(Open())


def test_a_contract_is_frozen() -> None:
    with pytest.raises(AttributeError):
        CONTRACT.name = "other"  # type: ignore[misc]


def test_the_message_lists_what_the_contract_takes() -> None:
    assert str(Contract.of(Typed())).startswith("Typed takes inputs: rate, speech; targets: audio_labels")
    assert isinstance(make_model(), StrictLM)
