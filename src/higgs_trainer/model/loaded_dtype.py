"""Choose the dtype in which the weights of a model are loaded."""

from pathlib import Path

from higgs_trainer.files import read_json_object
from higgs_trainer.model.model_files import SETTINGS
from higgs_trainer.model.model_folder import find_folder
from higgs_trainer.run_folder import MODEL_CONFIG

AUTO = "auto"
"""The dtype of the model's own files if that is bfloat16, else float32."""


def choose_dtype(name_or_path: str | Path, dtype: str = AUTO) -> str:
    """Return the dtype in which a model is loaded: the given one or, for "auto", bfloat16 if its config.json says so.

    A model that is stored in float16 is loaded in float32: float16 saves space in a file, but its largest value,
    65,504, is too small for the activations of a model that was trained in another dtype.

    Raises:
        CheckpointError: there is no such model.
        UserError: its config.json is damaged.
    """
    if dtype != AUTO:
        return dtype
    values = read_json_object(find_folder(name_or_path, SETTINGS) / MODEL_CONFIG)
    # transformers before version 5 wrote torch_dtype.
    return "bfloat16" if "bfloat16" in (values.get("dtype"), values.get("torch_dtype")) else "float32"
