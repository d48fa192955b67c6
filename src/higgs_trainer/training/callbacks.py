"""What happens beside the steps: sentences spoken while the model learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
