"""What happens beside the steps: a line to read at each log, sentences spoken while the model learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHOWN = {
    "loss": "loss {:.3f}",
    "eval_loss": "held-out loss {:.3f}",
    "codebook_0_loss": "codebook 0 {:.3f}",
    "eval_codebook_0_loss": "codebook 0 {:.3f}",
    "codebook_0_accuracy": "accuracy {:.0%}",
    "eval_codebook_0_accuracy": "accuracy {:.0%}",
    "grad_norm": "gradient {:.2f}",
    "learning_rate": "rate {:.1e}",
    "audio_seconds_per_second": "{:.0f} s of audio a second",
}


class ReadableProgress(ProgressCallback):
    """Trainer's progress bar, with a line to read at each log in place of the whole dictionary (which ``metrics.json``
    and ``report_to`` have)."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = [pattern.format(logs[key]) for key, pattern in SHOWN.items() if logs and key in logs]
        if state.is_world_process_zero and shown:
            line = f"step {state.global_step}/{state.max_steps}: " + ", ".join(shown)
            print(line, flush=True) if self.training_bar is None else self.training_bar.write(line)


class SpeakSamples(TrainerCallback):
    """After each evaluation and at the end, speaks into ``folder/step-N``, by the code that ``generate`` uses."""

    def __init__(self, speak_into: Callable[[Path], None], folder: Path) -> None:
        self.speak_into = speak_into
        self.folder = folder

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._speak(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._speak(state)

    def _speak(self, state: TrainerState) -> None:
        folder = self.folder / f"step-{state.global_step}"
        if state.is_world_process_zero and not folder.exists():
            self.speak_into(folder)
