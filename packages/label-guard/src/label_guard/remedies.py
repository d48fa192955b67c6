"""Say how to stop a leak, by its source and by whether the key is label-like."""

from label_guard.names import is_label_like

# Where a key came from, and the sentence: parts of the key or of the name of the source.
REMEDIES = (
    (
        "peft/peft_model.py",
        "PEFT's task classes pass arguments of their own to any model: make the adapter with task_type=None",
    ),
    (
        "num_items_in_batch",
        "A (**kwargs) wrapper made Trainer pass it: set trainer.model_accepts_loss_kwargs = False",
    ),
    ("hook ", "Change the hook so that it does not add keyword arguments, or remove it"),
)
LABEL_REMEDIES = (
    (
        "default_data_collator",
        "It renames label and label_ids to labels: use a collator of your own, or keep them for the loss",
    ),
    (
        "from the collator",
        "Leave it out in the collator, or keep it for the loss: the guard keeps it out of the model",
    ),
    (
        "from the dataset",
        "Remove the column from the dataset, or keep it for the loss: the guard keeps it out of the model",
    ),
)
# A key that came with the batch and is not label-like may be needed by the model, by the trainer, or by neither.
OTHER_REMEDY = (
    "If the model needs {key}, let its forward take it, or list it in the inputs of the contract. If only the trainer "
    "reads {key}, take it out of the batch there, before the model is called. If neither needs it, leave it out in "
    "the collator or in the dataset"
)


def find_remedy(name: str, key: str) -> str:
    """Return the remedy for a key from a source, in one or a few sentences; empty if none is known."""
    for part, remedy in REMEDIES:
        if part == key or part in name:
            return remedy
    if "in the batch" in name and not is_label_like(key):
        return OTHER_REMEDY.format(key=repr(key))
    return next((remedy for part, remedy in LABEL_REMEDIES if part in name), "")
