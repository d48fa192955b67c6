"""Generate speech for texts in a test, without a request for each."""

from collections.abc import Sequence

from higgs_trainer.dataset.context import Context
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.speech.clip_folder import GeneratedCodes
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.sampling import Sampling


def generate_texts(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    context: Context = Context(),
    sampling: Sampling = Sampling(),
) -> list[GeneratedCodes]:
    """Generate codes for each text, in the order of the texts."""
    clips = dict(generate_codes(checkpoint, [Request(text, context) for text in texts], sampling=sampling))
    return [clips[number] for number in range(len(texts))]
