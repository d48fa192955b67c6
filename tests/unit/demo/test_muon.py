"""Muon of the demo: what it orthogonalizes, what it leaves to AdamW, and that a resumed run continues."""

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from higgs_trainer.demo.muon import ADAMW_OVER_MUON, Muon, build_muon, orthogonalize
from tiny import tiny_checkpoint


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), learning_rate=0.02, weight_decay=0.05, use_cpu=True)


@pytest.mark.parametrize("shape", [(3, 5, 11), (2, 11, 5), (1, 7, 7)])
def test_singular_values_come_close_to_one_and_directions_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    turned = orthogonalize(matrices)
    assert torch.linalg.svdvals(turned).sub(1).abs().max() < 0.35
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    spread = left.mT @ turned @ right.mT
    assert (spread - torch.diag_embed(spread.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4


def test_one_step_moves_each_matrix_by_the_orthogonalized_gradient():
    parameter = nn.Parameter(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)))
    before, parameter.grad = parameter.detach().clone(), torch.randn(9, 4)
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    # Momentum scales the first gradient, which orthogonalizing undoes; 9/4 is rows over columns.
    expected = before * (1 - 0.1 * 0.5) - 0.1 * 1.5 * orthogonalize(parameter.grad[None])[0]
    torch.testing.assert_close(parameter.detach(), expected)


def test_matrices_of_the_layers_go_to_muon_and_the_rest_to_adamw(arguments):
    model = tiny_checkpoint().model
    muon, adamw = build_muon(model, arguments).parts
    in_layers = {id(p) for layer in model.model.layers for p in layer.parameters() if p.ndim == 2}
    assert {id(p) for p in muon.param_groups[0]["params"]} == in_layers
    others = {id(p) for p in model.parameters()} - in_layers
    assert {id(p) for p in adamw.param_groups[0]["params"]} == others
    assert muon.param_groups[0]["weight_decay"] == 0.05
    assert adamw.param_groups[0]["lr"] == pytest.approx(0.02 * ADAMW_OVER_MUON)


def test_a_loaded_state_continues_where_the_saved_one_was(arguments):
    def take_steps(model, optimizer, count):
        for _ in range(count):
            for index, parameter in enumerate(model.parameters()):
                parameter.grad = torch.sin(parameter.detach() * (index + 1))
            optimizer.step()

    whole, cut = (tiny_checkpoint().model for _ in range(2))
    take_steps(whole, build_muon(whole, arguments), 3)
    first = build_muon(cut, arguments)
    take_steps(cut, first, 2)
    second = build_muon(cut, arguments)
    second.load_state_dict(first.state_dict())
    take_steps(cut, second, 1)
    for expected, found in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(expected, found)
