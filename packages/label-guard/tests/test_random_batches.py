"""20,000 random nested batches, split by an owner's contract and passed on by an observer, against an oracle.

The oracle never sees the batch: each batch is built from a flat list of keys, values and places, and the oracle reads
the list. Plain seeded random numbers are used, because Hypothesis takes ten times as long for as many batches.
"""

import random
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import make_dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import BatchEncoding, BatchFeature

from label_guard import Contract, LabelGuard, LabelLeakError
from label_guard.step import Step, list_names

NUM_BATCHES = 20_000
INPUTS = ("input_ids", "attention_mask", "codes")
SHARED = ("both",)
TARGETS = ("labels", "audio_labels")
METADATA = ("utterance_ids",)
UNLISTED_LABELS = ("label_ids", "emotion_labels", "target")
UNKNOWN = ("speed", "speaker")
KEYS = INPUTS + SHARED + TARGETS + METADATA + UNLISTED_LABELS + UNKNOWN
CONTRACT = Contract("Model", frozenset(INPUTS + SHARED), frozenset(TARGETS + SHARED), frozenset(METADATA))
# Keys of batches inside the batch.
PLACES = ("outer", "inner", "rest")

ONES, ZEROS = torch.ones(2), torch.zeros(2)
# No two are equal, except a tensor and its clone. The mapping has the name of an input inside.
VALUES = (None, ONES, ONES.clone(), ZEROS, torch.ones(3), "text", [1], (1,), {"input_ids": ONES}, 3)
EQUAL = {1: 1, 2: 1}


@cache
def make_type(maker: Callable[..., Any], names: tuple[str, ...]) -> Any:
    """Make a dataclass or a named tuple, each once: this is slow."""
    return maker("Batch", names)


HOLDERS: tuple[Callable[[dict[str, Any]], Any], ...] = (
    dict,
    UserDict,
    BatchEncoding,
    BatchFeature,
    lambda fields: SimpleNamespace(**fields),
    lambda fields: make_type(make_dataclass, tuple(fields))(**fields),
    lambda fields: make_type(namedtuple, tuple(fields))(**fields),
)


class Entry(NamedTuple):
    path: tuple[str, ...]
    key: str
    value: int


def draw(random_numbers: random.Random) -> list[Entry]:
    """Draw the entries of a batch. One in three batches holds an unknown key, and one in three a key twice."""
    keys = random_numbers.sample(KEYS[: -len(UNKNOWN)], random_numbers.randint(1, 5))
    if random_numbers.random() < 0.3:
        keys.append(random_numbers.choice(UNKNOWN))
    if random_numbers.random() < 0.3:
        keys.append(random_numbers.choice(keys))
    entries: dict[tuple[tuple[str, ...], str], Entry] = {}
    for key in keys:
        path = tuple(PLACES[: random_numbers.choice((0, 0, 1, 2, 3))])
        entry = Entry(path, key, random_numbers.randrange(len(VALUES)))
        if key not in UNKNOWN or not isinstance(VALUES[entry.value], dict):
            entries[path, key] = entry
    return list(entries.values())


def build(entries: list[Entry], random_numbers: random.Random, depth: int = 0) -> Any:
    """Build the batch of some entries, with a random type at each depth."""
    fields = {entry.key: VALUES[entry.value] for entry in entries if len(entry.path) == depth}
    deeper = [entry for entry in entries if len(entry.path) > depth]
    if deeper:
        fields[PLACES[depth]] = build(deeper, random_numbers, depth + 1)
    keys = sorted(fields, reverse=random_numbers.random() < 0.5)
    return random_numbers.choice(HOLDERS)({key: fields[key] for key in keys})


def group(entries: list[Entry]) -> dict[str, list[int]]:
    """Return the values of each key that are not None; those of a key that has none are empty."""
    grouped: dict[str, list[int]] = {}
    for entry in entries:
        values = grouped.setdefault(entry.key, [])
        if VALUES[entry.value] is not None:
            values.append(entry.value)
    return grouped


def expect_errors(grouped: dict[str, list[int]]) -> set[str]:
    """Return the keys about which an error is due."""
    twice = {key for key, values in grouped.items() if len({EQUAL.get(value, value) for value in values}) > 1}
    return twice | (set(grouped) & set(UNKNOWN))


def draw_batches(count: int) -> Any:
    random_numbers = random.Random(12)
    for _ in range(count):
        entries = draw(random_numbers)
        if entries:
            yield entries, build(entries, random_numbers)


def test_an_owner_splits_each_batch_as_the_oracle_says() -> None:
    raised = nested = 0
    for entries, batch in draw_batches(NUM_BATCHES):
        grouped = group(entries)
        errors = expect_errors(grouped)
        nested += any(entry.path for entry in entries)
        if errors:
            with pytest.raises(LabelLeakError) as error:
                CONTRACT.split(batch)
            assert set(error.value.keys) & errors, entries
            raised += 1
            continue
        split = CONTRACT.split(batch)
        for part, names in ((split.model_inputs, INPUTS + SHARED), (split.metadata, METADATA)):
            assert set(part) == set(grouped) & set(names), entries
        targets = {key for key in grouped if key in TARGETS + SHARED + UNLISTED_LABELS and grouped[key]}
        assert set(split.targets) == targets, entries
        for part in split:
            for key, value in part.items():
                held = [VALUES[number] for number in grouped[key]]
                assert any(value is other for other in held) if held else value is None, entries
        flat = CONTRACT.flatten(batch)
        assert set(flat) == set(grouped)
    # The batches are of all kinds.
    assert raised > NUM_BATCHES / 4
    assert nested > NUM_BATCHES / 4


class Model(nn.Module):
    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, codes: Any = None, both: Any = None
    ) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "codes": codes, "both": both}
        return {key: value for key, value in given.items() if value is not None}


def test_an_observer_records_each_batch_and_a_call_stops_what_the_oracle_says() -> None:
    model = Model()
    guard = LabelGuard(model)
    # A source is looked for at each leak, which is another test's subject.
    guard.report = lambda *_, **__: "a source"  # type: ignore[method-assign]
    taken = set(INPUTS + SHARED)
    for entries, batch in draw_batches(NUM_BATCHES):
        step = Step()
        top = {entry.key: VALUES[entry.value] for entry in entries if not entry.path}
        step.names[1] = list_names(batch)
        assert {key for key in step.names[1] if step.find_first_layer(key, {1}) == 1} - set(PLACES) == set(
            top
        ), entries
        labels = {key for key in top if key in TARGETS + UNLISTED_LABELS}
        refused = {key for key in top if key not in taken | labels and top[key] is not None}
        if refused:
            with pytest.raises(TypeError, match="unexpected keyword argument"):
                model(**top)
            guard.pop_targets()
            continue
        seen = model(**top)
        assert seen.keys() == {key for key in top if key in taken and top[key] is not None}
        assert all(seen[key] is top[key] for key in seen)
        diverted = guard.pop_targets()
        assert diverted.keys() == {key for key in labels if top[key] is not None}
        assert all(diverted[key] is top[key] for key in diverted)
