"""Save a folder that generating, merging and reporting accept."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from higgs_trainer.training.run_record import write_base_path, write_end
from higgs_trainer.training.trainer_base import TrainerBase

if TYPE_CHECKING:
    from higgs_trainer.training.trainer_inputs import BuiltInputs
    from label_guard import LabelGuard


class UsableFolder(TrainerBase):
    """Mixin for a guarded Trainer that saves a usable folder: ``class T(UsableFolder, LabelGuardMixin, Trainer)``.

    Attributes:
        built: what the trainer built from its arguments. None: only what Trainer saves is saved.
        guard: the guard, whose report is saved.
        write_card: writes the model card into a folder. None: Trainer writes its own.
    """

    built: "BuiltInputs | None"
    guard: "LabelGuard"
    write_card: Callable[[Path], None] | None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and its tokenizer.

        After a call by the user, the folder also has the codec, the records and the checksums that generating, merging
        and reporting read.
        """
        if _internal_call or self.built is None:
            super().save_model(output_dir, _internal_call)
            return
        super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_end(folder, self.state, self.guard)
            write_base_path(folder, self.built.outline.name_or_path)
            self.built.complete_folder(folder)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card by ``write_card`` if there is one; ``push_to_hub`` calls this."""
        if self.write_card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.write_card(Path(self.args.output_dir))
