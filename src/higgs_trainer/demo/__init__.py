"""The demo: fine-tune a small model on packaged recordings, or train it from random weights, and judge its speech.

The model, the recordings and the recipes are in the package ``higgs_trainer_demo``.
"""

from importlib.util import find_spec
from pathlib import Path

from higgs_trainer.errors import UserError
from higgs_trainer.outputs import check_can_fill, fill_folder


def run_demo(output: Path, *, from_scratch: bool = False) -> None:
    """Run the demo into ``output``. What an earlier demo left unfinished there is renamed to ``NAME.unfinished-N``.

    Args:
        from_scratch: train a model from random weights, instead of fine-tuning the packaged base model.

    Raises:
        UserError: ``output`` is not empty, or a package that the demo needs is not installed.
    """
    if find_spec("higgs_trainer_demo") is None:
        raise UserError(
            "The data of the demo is not installed. In a clone of the repository, run: "
            "pip install ./packages/higgs-trainer-demo '.[demo]'. With wheels, run: "
            "pip install higgs_trainer_demo-*.whl 'higgs-trainer[demo]'"
        )
    check_can_fill(output)
    if from_scratch:
        from higgs_trainer.demo.from_scratch import train_from_scratch as run
    else:
        from higgs_trainer.demo.new_voice import train_a_new_voice as run
    with fill_folder(output):
        run(output)
