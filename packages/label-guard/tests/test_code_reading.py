"""What the bytecode of a function says about a key. Each function here is one way in which people write code."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from label_guard.code_reading import Evidence, find_scopes, follow, name_function, read_use

KEY = "labels"


def make(*_: Any) -> Any: ...


class Batch(dict[str, Any]): ...


def write_entry(b: Any) -> None:
    b["labels"] = 1


def write_dict(b: Any) -> Any:
    return {"input_ids": make(b), "labels": make(b)}


def write_constant_dict(b: Any) -> Any:
    return {"a": 1, "labels": 3}


def write_merged_dict(b: Any) -> Any:
    return {**b, "labels": make(b["x"])}


def write_union(b: Any) -> Any:
    return b | {"labels": b["input_ids"].masked_fill(b["input_ids"] % 5 == 0, -100)}


def write_dict_call(b: Any) -> Any:
    return dict(b, labels=make(1))


def write_update(b: Any) -> None:
    b.update(labels=make(b.x, 2))


def write_update_by_condition(b: Any) -> None:
    b.update({"labels": make(b["a"] if b else 0)})


def write_attribute(b: Any) -> None:
    b.labels = 1


def write_setdefault(b: Any) -> None:
    b.setdefault("labels", make())


def write_setattr(b: Any) -> None:
    setattr(b, "labels", 1)  # noqa: B010


def write_by_global(b: Any) -> None:
    b[KEY] = b["x"]


def write_by_default(b: Any, key: str = "labels") -> None:
    b[key] = 1


def write_in_a_loop(b: Any) -> None:
    for row in b:
        row["labels"] = row["input_ids"]


def write_a_membership(b: Any) -> Any:
    return {"labels": "x" in b}


def write_and_read(b: Any) -> None:
    b["labels"] = b["labels"].clone()


def mention_in_a_constructor(b: Any) -> Any:
    return Batch(labels=b)


def mention_in_a_loss(b: Any) -> Any:
    return make(logits=1, labels=b)  # type: ignore[call-arg]


def compute_sum(b: Any, part: str) -> None:
    b[part + "els"] = 1


def compute_string(b: Any) -> None:
    b[f"{b.x}els"] = 1


def compute_copy(b: Any) -> Any:
    return {key: make(key) for key in b}


def compute_fromkeys(b: Any) -> Any:
    return dict.fromkeys(b, 1)


def compute_merge(b: Any, extra: Any) -> Any:
    return {**b, **extra}


def read_entry(b: Any) -> Any:
    return b["labels"]


def read_pop(b: Any) -> Any:
    return b.pop("labels", None)


def read_get(b: Any) -> Any:
    return b.get("labels")


def read_membership(b: Any) -> Any:
    return "labels" in b[0].keys()  # noqa: SIM118


def read_getattr(b: Any) -> Any:
    return getattr(b, "labels", None)


def read_attribute(b: Any) -> Any:
    return b.labels


def read_deletion(b: Any) -> None:
    del b["labels"]


def read_condition(b: Any) -> Any:
    return 1 if "labels" in b and b["labels"] is not None else 0


def other_entry(b: Any) -> Any:
    b["x"], b["y"] = 1, 2
    return b[0]


def other_mask(b: Any) -> None:
    b[b > 3] = -100
    b[0:3] = 1


EXPECTED = {"write": Evidence.WRITES, "mention": Evidence.MENTIONS, "compute": Evidence.COMPUTES}
CASES = [
    function
    for name, function in list(globals().items())
    if name.partition("_")[0] in (*EXPECTED, "read", "other")
    and getattr(function, "__module__", "") == __name__
]


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_code_that_writes_mentions_computes_or_reads_a_key_is_distinguished(
    function: Callable[..., Any],
) -> None:
    (scope,) = find_scopes(function)
    use = read_use(scope, "labels")
    kind = function.__name__.partition("_")[0]
    assert use.evidence == EXPECTED.get(kind, Evidence.NONE)
    assert use.reads == (kind == "read" or function is write_and_read)


def test_all_kinds_of_code_are_among_the_cases() -> None:
    assert len(CASES) == 33


def evidence(called: Any, key: str = "labels") -> Evidence:
    return max(
        (read_use(scope, key).evidence for scope in follow(find_scopes(called))), default=Evidence.NONE
    )


class Parent:
    def __call__(self, rows: Any) -> Any:
        return self.build(rows)

    def build(self, rows: Any) -> Any:
        return rows


class Child(Parent):
    def __init__(self, key: str = "other") -> None:
        self.key = key

    def build(self, rows: Any) -> Any:
        rows = super().build(rows)
        rows[self.key] = rows["input_ids"]
        return rows


class Around:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, rows: Any) -> Any:
        return self.inner(rows)


def write_given(b: Any, key: str) -> None:
    b[key] = b["x"]


def make_closure(inner: Any) -> Any:
    def collate(rows: Any) -> Any:
        return inner(rows)

    return collate


def test_code_is_followed_through_partials_objects_parents_and_closures() -> None:
    assert evidence(functools.partial(write_given, key="labels")) == Evidence.WRITES
    assert evidence(functools.partial(write_given, key="other")) == Evidence.NONE
    assert evidence(Child("labels")) == Evidence.WRITES
    assert evidence(Child()) == Evidence.NONE
    assert evidence(Around(Child("labels"))) == Evidence.WRITES
    assert evidence(make_closure(write_entry)) == Evidence.WRITES
    assert evidence(make_closure(read_entry)) == Evidence.NONE
    assert evidence(Child("labels").build) == Evidence.WRITES


def test_a_callable_without_python_code_is_named_without_a_place() -> None:
    assert name_function(len) == "len"
    assert evidence(len) == Evidence.NONE


class Trap:
    """An object that must not be asked for anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it was compared")

    __hash__ = None  # type: ignore[assignment]

    @property
    def labels(self) -> Any:
        raise AssertionError("a property ran")

    def __call__(self, rows: Any) -> Any:
        return {"labels": self.labels}


def test_reading_code_runs_none_of_it() -> None:
    assert evidence(Trap()) == Evidence.WRITES
    assert evidence(functools.partial(write_given, key=Trap())) == Evidence.WRITES  # type: ignore[arg-type]
