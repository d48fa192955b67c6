"""One conversation for each task: the text and what stands before it. The clips' codes are drawn by their length."""

from higgs_trainer.data.prompt import Context, SpokenClip
from tiny import draw_codes

SCENE = "Audio is recorded from a quiet room."
DIALOGUE = "[SPEAKER0] seven two\n[SPEAKER1] four"
TARGET_FRAMES = 11
FIRST, SECOND = (SpokenClip(text, draw_codes(F, seed=F)) for text, F in (("nine one", 5), ("six", 3)))

TASKS: dict[str, tuple[str, Context]] = {
    "single speaker": ("seven two", Context()),
    "scene": ("seven two", Context(scene=SCENE)),
    "multi-speaker": (DIALOGUE, Context()),
    "multi-speaker in a scene": (
        DIALOGUE,
        Context(scene=f"{SCENE}\n\nSPEAKER0: feminine\nSPEAKER1: masculine"),
    ),
    "zero-shot cloning": ("seven two", Context(references=(FIRST,))),
    "zero-shot cloning in a scene": ("seven two", Context(SCENE, (FIRST,))),
    "multi-speaker cloning": (DIALOGUE, Context(SCENE, (FIRST, SECOND))),
    "reference in the system message": ("seven two", Context(SCENE, (FIRST,), references_in_system=True)),
    "references in the system message": (
        DIALOGUE,
        Context(SCENE, (FIRST, SECOND), references_in_system=True),
    ),
    "several turns": ("seven two", Context(turns=(FIRST, SECOND))),
    "several turns with a reference in the system message": (
        "[SPEAKER0] seven two",
        Context(SCENE, (FIRST,), (SECOND,), references_in_system=True),
    ),
}
