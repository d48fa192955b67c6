"""Run the public trainer of Higgs Audio, from a copy that you fetched, on a tiny random model: no download, no GPU.

    python tests/boson/fetched_trainer.py COPY [--guard mixin | model] [--keep-patch]

The class-level patch with which that trainer protects its model is left out, unless ``--keep-patch`` is given. Prints
the loss of each step, and how many LoRA tensors moved.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

sys.path.append(str(Path(__file__).parents[1]))

TOKENIZER = "boson_multimodal.audio_processing.higgs_audio_tokenizer"
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def import_trainer(copy: Path) -> ModuleType:
    """Import ``trainer/trainer.py`` of the copy, with its own ``boson_multimodal``.

    It reads no audio here, so the modules for that are empty.
    """
    for name in ("torchaudio", TOKENIZER):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    sys.modules[TOKENIZER].load_higgs_audio_tokenizer = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(copy))
    return importlib.import_module("trainer.trainer")


def make_model(theirs: ModuleType, folder: str, *, keep_patch: bool) -> Any:
    """Build their wrapper around a tiny model, and add LoRA with their function."""
    from tiny_boson import make_model

    make_model().save_pretrained(folder)
    if not keep_patch:
        theirs.HiggsAudioModelWrapper._apply_critical_labels_fix = lambda self: None
    model = theirs.HiggsAudioModelWrapper(folder, device="cpu")
    torch.manual_seed(0)
    return theirs.setup_lora_config(model, LORA)


def make_trainer(theirs: ModuleType, kind: type, model: Any, folder: str) -> Any:
    """Build their trainer with their collator, and clips of random codes."""
    from tiny_boson import AUDIO_IN, AUDIO_OUT, BEGIN, END, NUM_CODEBOOKS, PAD, FreshSamples

    collator = theirs.ExtendedHiggsAudioSampleCollator(
        whisper_processor=None,
        audio_in_token_id=AUDIO_IN,
        audio_out_token_id=AUDIO_OUT,
        audio_stream_bos_id=BEGIN,
        audio_stream_eos_id=END,
        encode_whisper_embed=False,
        pad_token_id=PAD,
        return_audio_in_tokens=True,
        use_delay_pattern=False,
        round_to=8,
        audio_num_codebooks=NUM_CODEBOOKS,
    )
    arguments = TrainingArguments(
        output_dir=folder, max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1,
        report_to=[], save_strategy="no", remove_unused_columns=False, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    samples = FreshSamples(range(8))
    return kind(model=model, args=arguments, train_dataset=samples, data_collator=collator)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("copy", type=Path)
    parser.add_argument("--guard", choices=["mixin", "model"])
    parser.add_argument("--keep-patch", action="store_true")
    arguments = parser.parse_args()
    theirs = import_trainer(arguments.copy)
    logging.getLogger().setLevel(logging.ERROR)
    kind = theirs.HiggsAudioTrainer
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(theirs, folder, keep_patch=arguments.keep_patch)
        guard = None
        if arguments.guard == "model":
            from label_guard import LabelGuard

            guard = LabelGuard(model)
        if arguments.guard == "mixin":
            from label_guard import LabelGuardMixin

            kind = type("GuardedTrainer", (LabelGuardMixin, kind), {})
        before = {name: weight.clone() for name, weight in model.named_parameters() if "lora" in name}
        trainer = make_trainer(theirs, kind, model, folder)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        after = dict(model.named_parameters())
        print("losses", *(f"{entry['loss']:.4f}" for entry in trainer.state.log_history if "loss" in entry))
        print(
            "moved",
            sum(not torch.equal(weight, after[name]) for name, weight in before.items()),
            "of",
            len(before),
        )
        guard = trainer.guard if arguments.guard == "mixin" else guard
        if guard is not None:
            print(guard.ledger.cascade())


if __name__ == "__main__":
    main()
