"""Find a sentence that YAML has split at its commas: ``texts: [Good morning, this is my voice.]`` are two texts."""

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

from higgs_trainer.recipe.problems import Place

TEXTS: Place = ("samples", "texts")
ENDS = (".", "!", "?", "…", "。", "！", "？", '"', "'", "]", ")")


def find_split_texts(texts: Any, unquoted: Collection[Place]) -> Iterator[tuple[Place, str, str]]:
    """Yield the place, the problem and the remedy of each text that looks like the rest of the one before it.

    Such a text begins with a small letter after one that does not end like a sentence, and the two look like the
    beginning and the end of one: the first begins with a capital, or the second ends like a sentence.

    Args:
        texts: the value of ``samples.texts``.
        unquoted: the places of texts without quotes in a list of the form ``[a, b]``.
    """
    if not isinstance(texts, list):
        return
    for index, (first, second) in enumerate(pairwise(texts), start=1):
        if not (isinstance(first, str) and isinstance(second, str) and first and second):
            continue
        is_split = second[0].islower() and not first.endswith(ENDS)
        looks_whole = first[0].isupper() or second.endswith(ENDS)
        if is_split and looks_whole and (*TEXTS, index) in unquoted:
            yield (
                (*TEXTS, index),
                f'"{second}" looks like the rest of "{first}": in [...] a comma starts another text',
                'Put each text in quotes, as in ["One, two.", "Three."].',
            )
