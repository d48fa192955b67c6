"""Weights that are written one at a time are in the same files as those that safetensors writes at once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_trainer.model import weight_writing
from higgs_trainer.model.weight_writing import write_weights


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Weights of four dtypes, in no order, with a name that JSON escapes, one without numbers, and one scalar."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "b.weight": (7, 5),
        "a.bias": (3,),
        'ö"': (2, 3, 1),
        "none": (0, 4),
        "one": (),
        "c": (11, 3),
        "d": (2, 2),
    }
    wide, narrow = torch.float32, torch.bfloat16
    dtypes = (wide, narrow, wide, wide, torch.float64, narrow, torch.float16)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: weight.to(dtype) for (name, weight), dtype in zip(made.items(), dtypes, strict=True)}


def plan(weights):
    return {name: torch.empty_like(weight, device="meta") for name, weight in weights.items()}


@pytest.mark.parametrize("part", [2, weight_writing.PART], ids=["in parts", "at once"])
def test_the_file_is_that_of_safetensors(weights, tmp_path, monkeypatch, part):
    monkeypatch.setattr(weight_writing, "PART", part)
    del weights["d"]
    assert write_weights(tmp_path, plan(weights), weights.__getitem__) == []
    save_file(weights, tmp_path / "expected", metadata={"format": "pt"})
    assert [path.name for path in tmp_path.iterdir() if path.name != "expected"] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_every_dtype_and_shape_is_read_back(weights, tmp_path):
    write_weights(tmp_path, plan(weights), weights.__getitem__)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert {name: weight.dtype for name, weight in found.items()} == {
        name: weight.dtype for name, weight in weights.items()
    }


def test_weights_that_do_not_fit_into_one_file_are_found_by_the_index(weights, tmp_path):
    write_weights(tmp_path, plan(weights), weights.__getitem__, max_shard_size="0.15KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_parameters": sum(weight.numel() for weight in weights.values()),
        "total_size": sum(weight.nbytes for weight in weights.values()),
    }
    assert len(set(index["weight_map"].values())) == len(list(tmp_path.glob("*.safetensors"))) == 2
    for name, weight in weights.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], weight)


def test_weights_are_rounded_and_what_is_not_finite_then_is_named(tmp_path):
    weights = {
        "large": torch.tensor([1.0, 7e4]),
        "fine": torch.tensor([1.0001]),
        "nan": torch.tensor([torch.nan]),
    }
    planned = {
        name: torch.empty_like(weight, dtype=torch.float16, device="meta") for name, weight in weights.items()
    }
    assert sorted(write_weights(tmp_path, planned, weights.__getitem__)) == ["large", "nan"]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["fine"], weights["fine"].half())


def test_a_weight_of_another_shape_than_planned_is_an_error(weights, tmp_path):
    planned = plan(weights)
    planned["c"] = torch.empty((3, 11), device="meta")
    with pytest.raises(ValueError, match=r"shape \(11, 3\), not \(3, 11\)"):
        write_weights(tmp_path, planned, weights.__getitem__)
