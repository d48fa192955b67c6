"""What is left after a command was interrupted, and how to continue: one sentence for each command."""

from collections.abc import Sequence

NOTHING_WRITTEN = "Nothing was written."
STARTS_AGAIN = (
    "The clips that were finished are kept. The same command renames their folder to NAME.unfinished-1 and starts "
    "again."
)

WHAT_IS_KEPT = {
    "init": "The recipe is written whole or not at all. Run the same command again if it is not there.",
    "prepare": "Nothing was written yet, but what was checked and encoded is kept: the same command continues.",
    "convert-manifest": NOTHING_WRITTEN,
    "check": "A check writes nothing.",
    "plan": "A plan writes nothing.",
    "train": "What was trained since the last checkpoint is lost. If there is a checkpoint, the same command with "
    "--resume_from_checkpoint true continues from it.",
    "generate": STARTS_AGAIN,
    "evaluate": STARTS_AGAIN,
    "demo": "The same command renames the output folder to NAME.unfinished-1 and starts again.",
    "merge": NOTHING_WRITTEN,
    "convert": NOTHING_WRITTEN,
    "card": "The card is as it was.",
    "report": NOTHING_WRITTEN,
}


def describe_what_is_kept(arguments: Sequence[str]) -> str:
    """Return the sentence for a command line, with a space before it. Empty if the command needs none."""
    sentence = WHAT_IS_KEPT.get(arguments[0]) if arguments else None
    return f" {sentence}" if sentence else ""
