"""A training script as people write it with TRL. Nothing in it knows of label-guard. Arguments: the output folder."""

import os
import sys

import torch
from tiny_language import make_adapter, make_columns, make_llama, make_tokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    model = make_llama()
    if "--leak" in sys.argv:
        model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "emotion_labels": 1}), with_kwargs=True
        )
    arguments = SFTConfig(
        output_dir=sys.argv[1], max_steps=3, per_device_train_batch_size=2, learning_rate=0.05, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, seed=3, disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=make_columns("text"),
        processing_class=make_tokenizer(),
        peft_config=make_adapter("CAUSAL_LM"),
    )
    # What the trainer itself prints holds times.
    trainer.callback_handler.callbacks = [
        callback for callback in trainer.callback_handler.callbacks if "Print" not in type(callback).__name__
    ]
    trainer.train()
    if trainer.is_world_process_zero():
        for entry in trainer.state.log_history:
            print(
                {key: value for key, value in entry.items() if "runtime" not in key and "second" not in key}
            )
        print(sum(weight.double().sum().item() for weight in trainer.model.parameters()))
        print(torch.get_rng_state().sum().item())
    sys.exit(int(os.environ.get("EXIT_CODE", "0")))


if __name__ == "__main__":
    main()
