"""The text embedding's gradient, sparse between micro-batches: the same numbers, dense before anybody uses them."""

import runpy
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from higgs_trainer.dataset.collator import PaddingCollator
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.example_encoding import build_examples
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.model.parameters import freeze
from higgs_trainer.model.sparse_gradients import collect_sparsely, make_dense
from higgs_trainer.recipe.schema import read_recipe
from higgs_trainer.run.assembly import build_run
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, make_row, tiny_checkpoint

house = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "kill_and_resume.py"))
FRAMES = (3, 11, 7, 5, 9)  # with two a step the last step has one
EMBEDDING = "model.embed_tokens.weight"


class WatchingTrainer(HiggsAudioTrainer):
    """Notes how each micro-batch left the embedding's gradient, and what each step's optimizer sees."""

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        self.layouts.append(model.get_input_embeddings().weight.grad.layout)
        return loss

    def watch(self):
        self.layouts, self.steps = [], []
        self.create_optimizer()
        self.optimizer.register_step_pre_hook(lambda *_: self.steps.append(self.read_gradients()))

    def read_gradients(self):
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def train_epoch(folder, *, sparse):
    checkpoint = tiny_checkpoint()
    if sparse:
        assert collect_sparsely(checkpoint.model)
    rows = [make_row(seed, num_frames=frames) for seed, frames in enumerate(FRAMES)]
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    config = checkpoint.model.config
    trainer = WatchingTrainer(
        model=checkpoint.model,
        args=args,
        train_dataset=build_examples(rows, checkpoint.tokenizer, checkpoint.stream_ids),
        data_collator=PaddingCollator(config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS),
        family=HIGGS_AUDIO_V2,
    )
    trainer.watch()
    trainer.train()
    return trainer


def test_every_step_has_the_gradients_and_the_log_of_a_dense_run(tmp_path):
    dense, sparse = (train_epoch(tmp_path, sparse=sparse) for sparse in (False, True))
    assert [layout == torch.sparse_coo for layout in sparse.layouts] == [True, False, True, False, False]
    assert len(dense.steps) == len(sparse.steps) == 3
    for expected, found in zip(dense.steps, sparse.steps, strict=True):
        assert expected.keys() == found.keys()
        assert found[EMBEDDING].layout == torch.strided
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    logs = [
        [log["grad_norm"] for log in run.state.log_history if "grad_norm" in log] for run in (dense, sparse)
    ]
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)


def test_only_an_embedding_that_is_trained_is_collected():
    assert not collect_sparsely(add_lora(tiny_checkpoint().model, HIGGS_AUDIO_V2, r=2, lora_alpha=2))
    frozen = tiny_checkpoint().model
    freeze(frozen, ["text_embeddings"])
    assert not collect_sparsely(frozen)
    assert not frozen.get_input_embeddings().sparse
    saved = add_lora(
        tiny_checkpoint().model, HIGGS_AUDIO_V2, r=2, lora_alpha=2, modules_to_save=["embed_tokens"]
    )
    assert not collect_sparsely(saved)


@pytest.mark.parametrize(
    ("dtype", "collects"), [(torch.float16, False), (torch.bfloat16, False), (torch.float64, True)]
)
def test_only_dtypes_of_which_torch_can_add_sparse_gradients_are_collected(dtype, collects):
    assert collect_sparsely(tiny_checkpoint().model.to(dtype)) == collects


def test_gradients_that_are_dense_or_none_stay_what_they_are():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    parameters[0].grad = torch.ones(2)
    before = parameters[0].grad
    make_dense(parameters)
    assert parameters[0].grad is before
    assert parameters[1].grad is None


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = house["write_house"](tmp_path_factory.mktemp("house"), max_steps=2)
    path.write_text(path.read_text().replace("adapter: {r: 4, lora_dropout: 0.2}", "adapter: null"))
    return path


@pytest.mark.parametrize(("packs", "processes"), [(2, 1), (1, 1), (2, 2)])
def test_one_process_with_several_micro_batches_a_step_collects(recipe, monkeypatch, packs, processes):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda _: processes))
    run = build_run(read_recipe(recipe, ["--gradient_accumulation_steps", str(packs)]))
    assert run.checkpoint.model.get_input_embeddings().sparse == (packs > processes)
