"""Recognise a label by its name."""

# Keys that only a loss reads, by the names that Hugging Face, PEFT and their collators use. A name that contains
# "label" or "target" also counts, so that a new name is not overlooked.
TARGET_NAMES = frozenset(
    {
        "audio_labels",
        "end_positions",
        "label",
        "label_ids",
        "labels",
        "lm_labels",
        "next_sentence_label",
        "num_items_in_batch",
        "shift_labels",
        "start_positions",
        "target",
        "targets",
    }
)


def is_label_like(key: str) -> bool:
    """Whether the name of a key says that it is for the loss and not for the model."""
    return key in TARGET_NAMES or "label" in key or "target" in key
