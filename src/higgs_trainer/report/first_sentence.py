"""Say in one sentence what a run achieved, from its figures alone."""

from higgs_trainer.report.runs import RunContents
from higgs_trainer.report.scores import (
    BETTER,
    SAME,
    UNCLEAR,
    WORSE,
    Comparison,
    compare_scores,
    find_loss_ends,
)

REACHED = 2 / 3
"""The voice resembles the recordings if this share of its distance from them is overcome."""

VOICE = {
    WORSE: "the voice is less like the recordings than before",
    SAME: "the voice is as like the recordings as before",
    UNCLEAR: "the voice is not clearly more or less like the recordings than before",
    "": "the voice was compared with the recordings",
}
MOST_COUNTED = 1_000
"""Of rarer errors only this is said, that they are rarer."""

NOT_JUDGED = "how it sounds was not judged"


def describe_outcome(run: RunContents) -> str:
    """Describe likeness and words if they were judged, else what the losses say, which is nothing about the sound.

    Example: ``The voice now resembles the recordings (similarity 0.58 to 0.84; the real voice 0.90); 1 word in 9 is
    heard wrong (before 3 in 10; the real voice 1 in 31).``
    """
    found = {one.key: one for one in compare_scores(run)}
    parts = []
    if "similarity" in found:
        parts.append(_describe_voice(found["similarity"]))
    if "wer" in found:
        parts.append(_describe_errors(found["wer"], "word"))
    elif "cer" in found:
        parts.append(_describe_errors(found["cer"], "character"))
    if "stopped" in found and found["stopped"].after.value < 1:
        parts.append(_describe_endless(1 - found["stopped"].after.value))
    sentence = "; ".join(parts or [_describe_losses(run)])
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _describe_voice(likeness: Comparison) -> str:
    figures = f"{likeness.after.value:.2f}"
    if likeness.before is not None and likeness.verdict != SAME:
        before = likeness.before.value
        digits = 2 if f"{before:.2f}" != figures else 3
        figures = f"{before:.{digits}f} to {likeness.after.value:.{digits}f}"
    if likeness.recordings:
        name, score = next(iter(likeness.recordings.items()))
        figures = f"{figures}; {name} {score.value:.2f}"
    words = _describe_gain(likeness) if likeness.verdict == BETTER else VOICE[likeness.verdict]
    return f"{words} (similarity {figures})"


def _describe_gain(likeness: Comparison) -> str:
    """Say that the voice resembles the recordings only if the score of the real voice is known and near."""
    assert likeness.before is not None
    gain = likeness.after.value - likeness.before.value
    for real in likeness.recordings.values():
        if gain >= REACHED * (real.value - likeness.before.value):
            return "the voice now resembles the recordings"
    return "the voice is closer to the recordings than before"


def _describe_errors(errors: Comparison, unit: str) -> str:
    """Describe an error rate, with the rates from before and of the real voice if they are known."""
    after, verdict = errors.after.value, errors.verdict
    share = _count(after, unit)
    others = []
    if errors.before is not None and verdict != SAME:
        before = errors.before.value
        earlier = _count(before)
        if earlier == _count(after):
            share, earlier = f"{after:.1%} of the {unit}s", f"{before:.1%}"
        others.append(
            {BETTER: f"before {earlier}", WORSE: earlier, UNCLEAR: f"before {earlier}, which may be chance"}[
                verdict
            ]
        )
    others += [f"{name} {_count(score.value)}" for name, score in list(errors.recordings.items())[:1]]
    compared = {WORSE: ", more than before", SAME: ", as before"}.get(verdict, "")
    verb = "are" if f"{unit}s" in share else "is"
    brackets = f" ({'; '.join(others)})" if others else ""
    return f"{share} {verb} heard wrong{compared}{brackets}"


def _describe_endless(rate: float) -> str:
    share = _count(rate, "clip")
    return f"{share} did not end by {'themselves' if 'clips' in share else 'itself'}"


def _count(rate: float, unit: str = "") -> str:
    """Return a rate as a count, such as "1 word in 9" or "7 words in 10"; without a unit "1 in 9"."""
    one, several = (f" {unit}", f" {unit}s") if unit else ("", "")
    if rate <= 0:
        return f"no{one}" if unit else "none"
    if rate < 1 / MOST_COUNTED:
        return f"less than 1{one} in {MOST_COUNTED:,}"
    if rate <= 0.28:
        return f"1{one} in {round(1 / rate):,}"
    tenths = min(round(10 * rate), 10)
    return f"{tenths}{several} in 10"


def _describe_losses(run: RunContents) -> str:
    for key, name in (("eval_loss", "held-out"), ("loss", "training")):
        if (ends := find_loss_ends(run, key)) is not None:
            (first_step, first), (last_step, last) = ends
            shown = f"{first:.3f}", f"{last:.3f}"
            steps = f"between the steps {first_step:,} and {last_step:,}"
            if shown[0] == shown[1]:
                return f"the {name} loss is {shown[1]} as before, {steps}; {NOT_JUDGED}"
            verb = "fell" if last < first else "rose"
            return f"the {name} loss {verb} from {shown[0]} to {shown[1]} {steps}; {NOT_JUDGED}"
    return f"fewer than two losses are logged, and {NOT_JUDGED}"
