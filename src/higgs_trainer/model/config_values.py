"""Check the values of a model's ``config.json`` before and after a model is built from them.

transformers checks their types. A number of layers may still be so large that building them never ends, and an id may
be outside the vocabulary, with which the model would run and speak nonsense.
"""

import math
from collections.abc import Iterator, Mapping, Sized
from typing import Any

from higgs_trainer.errors import CheckpointError
from higgs_trainer.limits import LARGEST_COUNT
from higgs_trainer.model.families import StreamIds
from higgs_trainer.model.weight_files import COPY_AGAIN

ABOVE_ZERO = ("rope_theta", "factor")
OPTIONAL = ("eos_token_id", "bos_token_id")


def check_numbers(name: str, values: Mapping[str, Any], stored: Sized) -> None:
    """Check that no number of a configuration is absurd.

    Args:
        values: the configuration.
        stored: the weights in the files of the model. Each layer has several.

    Raises:
        CheckpointError: a number is not finite or not within 32 bits, a scale of positions is not above 0, there are
            more layers than weights, or the model is not a decoder.
    """
    for key, value in _list_numbers(values):
        # An integer of hundreds of digits fits into no float.
        is_wrong = abs(value) > LARGEST_COUNT if isinstance(value, int) else not math.isfinite(value)
        if is_wrong:
            raise CheckpointError(f"{name}: {key} in config.json is {str(value)[:40]}. {COPY_AGAIN}")
        if key in ABOVE_ZERO and value <= 0:
            raise CheckpointError(f"{name}: {key} in config.json is {value}, not above 0. {COPY_AGAIN}")
    # transformers makes a layer for each of the first, and a name for each of the second.
    for key in ("num_hidden_layers", "num_labels"):
        number = values.get(key)
        if isinstance(number, int) and number > len(stored):
            raise CheckpointError(
                f"{name}: {key} in config.json is {number:,}, more than the model's {len(stored):,} weights. "
                + COPY_AGAIN
            )
    if values.get("is_encoder_decoder"):
        raise CheckpointError(f"{name}: is_encoder_decoder in config.json must be false. {COPY_AGAIN}")


def _list_numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
    elif isinstance(value, dict | list):
        for inner, item in value.items() if isinstance(value, dict) else ((key, item) for item in value):
            yield from _list_numbers(item, str(inner))


def check_ids(name: str, config: Any, ids: StreamIds) -> None:
    """Check that the ids of a model are those of tokens in its vocabulary, and of codes in its codebooks.

    Raises:
        CheckpointError: an id is outside.
    """
    begin, end = ids.begin, ids.end
    if config.codebook_size <= max(begin, end):
        raise CheckpointError(
            f"{name}: codebook_size {config.codebook_size} leaves no room for the stream tokens {begin} and {end}. "
            f"Set it to {max(begin, end) + 1} in config.json"
        )
    if min(begin, end) < 0 or begin == end:
        raise CheckpointError(
            f"{name}: the stream tokens in config.json are {begin} and {end}, not two codes. {COPY_AGAIN}"
        )
    tokens = {key: getattr(config, key, None) for key in ("pad_token_id", *OPTIONAL)}
    tokens |= {"the audio token": ids.audio_token, "the delay token": ids.delay_token}
    for key, token in tokens.items():
        if token is None and key in OPTIONAL:
            continue
        if not isinstance(token, int) or not 0 <= token < config.vocab_size:
            raise CheckpointError(
                f"{name}: {key} in config.json is {token}, not the id of one of the {config.vocab_size} tokens. "
                + COPY_AGAIN
            )
