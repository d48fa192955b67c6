"""The embedded default: a small model, recordings of a voice, and the recipe that brings them together."""

from pathlib import Path


def run_demo(output: Path, *, from_scratch: bool = False) -> None:
    """Run the demo into ``output``: a new voice on the packaged base model or, ``from_scratch``, a model from nothing.

    Raises:
        UserError: ``output`` holds files already, or the judges' packages are not installed.
    """
    if from_scratch:
        from higgs_trainer.demo.from_scratch import learn_to_speak

        learn_to_speak(output)
    else:
        from higgs_trainer.demo.new_voice import learn_a_voice

        learn_a_voice(output)
