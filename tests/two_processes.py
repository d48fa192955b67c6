"""Functions that tests/end_to_end/test_two_processes.py runs in one process and, by accelerate, in two.

accelerate launch --config_file recipes/launch/ddp.yaml tests/two_processes.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import nn
from transformers import TrainingArguments

from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.dataset.packing import BatchPlan, PackPlan, PlannedExamples, measure_tokens
from higgs_trainer.errors import HiggsTrainerError, LossError, RecipeError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import family_of
from higgs_trainer.model.indexed_layers import IndexedDecoderLayer, index_layers
from higgs_trainer.training.checkpoints import share_start
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, encode_rows, make_row, tiny_checkpoint

KINDS = ("full", "lora", "lora packed")
SHARDED_KINDS = ("full", "lora")
FRAMES = (3, 31, 7, 14, 22, 5)
HELD_OUT_FRAMES = (4, 29, 9, 2, 13)
TOKENS_PER_PACK = 120


class RecordingTrainer(HiggsAudioTrainer):
    """Records the ids of every utterance that it is trained on."""

    def compute_guarded_loss(self, model, model_inputs, targets, metadata, num_items_in_batch):
        if model.training:
            self.seen = [*getattr(self, "seen", ()), *metadata["utterance_ids"]]
        return super().compute_guarded_loss(model, model_inputs, targets, metadata, num_items_in_batch)


def build_trainer(kind, folder, *, epochs=1):
    """Build a trainer whose epoch is one optimizer step over all examples; a micro-batch is an example or a pack."""
    checkpoint = tiny_checkpoint()
    model = checkpoint.model
    if "lora" in kind:
        torch.manual_seed(1)
        model = add_lora(model, family_of(model), r=3, lora_alpha=5)
        # B is initialized with 0, which gives A no gradient.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_grad_norm=0.0,
        ddp_find_unused_parameters=False,
        logging_steps=1,
        num_train_epochs=epochs,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=2,
        train_sampling_strategy="sequential",
    )
    examples, held_out = (
        encode_rows([make_row(seed, num_frames=n) for seed, n in enumerate(frames)], checkpoint)
        for frames in (FRAMES, HELD_OUT_FRAMES)
    )
    ranks = args.world_size
    if ranks > 1:
        # Two processes with our layers are compared with one that has transformers' layers.
        index_layers(model)
        assert sum(isinstance(module, IndexedDecoderLayer) for module in model.modules()) == 2
    if "packed" in kind:
        lengths = measure_tokens(examples, tokens_per_pack=TOKENS_PER_PACK)
        plan = PackPlan(lengths, tokens_per_pack=TOKENS_PER_PACK, seed=0, num_ranks=ranks)
        collator = PackingCollator(NUM_CODEBOOKS)
    else:
        plan = BatchPlan(len(examples), batch_size=1, seed=0, num_ranks=ranks)
        collator = PaddingCollator(
            checkpoint.model.config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS
        )
    args.gradient_accumulation_steps = len(plan) // ranks
    held_out_plan = BatchPlan(len(held_out), batch_size=2, seed=0, num_ranks=ranks)
    return RecordingTrainer(
        model=model,
        args=args,
        train_dataset=PlannedExamples(examples, plan),
        eval_dataset=PlannedExamples(held_out, held_out_plan) if ranks > 1 else held_out,
        data_collator=collator,
        family=family_of(checkpoint.model),
    )


def train_one_step(kind, folder):
    """Return every gradient of one optimizer step, and the log."""
    trainer = build_trainer(kind, folder)
    gradients = {}
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(lambda *_: gradients.update(gradients_of(trainer.model)))
    trainer.train()
    return gradients, trainer.state.log_history[0]


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def shard_one_step(kind, folder):
    """Take the same step under torch's ``fully_shard``, without Trainer's loop, since accelerate would use DDP."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    trainer = build_trainer(kind, folder)
    model: nn.Module = trainer.model.train()
    mesh = init_device_mesh("cpu", (trainer.args.world_size,))
    base = model.get_base_model() if "lora" in kind else model
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    batches = list(trainer.get_train_dataloader())
    counts = trainer.count_targets(batches)
    for batch in batches:
        trainer.compute_loss(model, batch, num_items_in_batch=counts).backward()
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    gradients = {name: gradient.full_tensor() for name, gradient in gradients_of(model).items()}
    check_gradient = trainer.finite_steps.on_pre_optimizer_step
    check_gradient(None, trainer.state, None, model=model)
    # In the shard of one rank only: every rank must stop, and name the utterances of all ranks.
    if torch.distributed.get_rank() == 0:
        next(p for p in model.parameters() if p.grad is not None).grad.to_local().view(-1)[0] = torch.inf
    try:
        check_gradient(None, trainer.state, None, model=model)
    except LossError as error:
        return gradients, str(error)
    return gradients, "not stopped"


def see_two_epochs(kind, folder):
    """Return the utterances of two epochs, over all ranks."""
    trainer = build_trainer(kind, folder, epochs=2)
    trainer.train()
    return sorted(gather_object(trainer.seen))


def evaluate(folder):
    return build_trainer("full", folder).evaluate()


def refuse_what_would_be_repeated(folder):
    """Return the errors for sets that accelerate would round up by repeating examples: held-out, then training."""
    trainer = build_trainer("full", folder)
    five = trainer.eval_dataset.examples
    trainer.train_dataset = five
    refusals = []
    for call in (lambda: trainer.evaluate(five), trainer.train):
        try:
            call()
        except ValueError as error:
            refusals.append(str(error))
    return refusals


def find_starts(folder):
    """Return what each rank says of a folder that both have, of one that only rank 0 has, and of an error of rank 0."""

    def refuse():
        raise RecipeError("only rank 0 has looked")

    found = []
    for find in (lambda: folder, lambda: Path("/proc/self/task", str(os.getpid())), refuse):
        try:
            found.append(str(share_start(find)))
        except HiggsTrainerError as error:
            found.append(str(error))
    return gather_object([found])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    logs = {}
    for kind in KINDS:
        gradients, logs[kind] = train_one_step(kind, folder)
        save_on_first(gradients, folder / f"ddp {kind}.safetensors")
    stopped = {}
    for kind in SHARDED_KINDS:
        gradients, stopped[kind] = shard_one_step(kind, folder)
        save_on_first(gradients, folder / f"sharded {kind}.safetensors")
    found = {
        "logs": logs,
        "seen": {kind: see_two_epochs(kind, folder) for kind in KINDS[1:]},
        "evaluation": evaluate(folder),
        "stopped": gather_object([stopped]),
        "starts": find_starts(folder),
        "refusals": refuse_what_would_be_repeated(folder),
    }
    if torch.distributed.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    # The caches of fully_shard keep the process group and its threads alive, which may abort Python at exit.
    os._exit(0)


def save_on_first(tensors, path):
    if torch.distributed.get_rank() == 0:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
