"""The JSON reader of all manifests: what Python accepts silently is a problem of its row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from higgs_trainer.errors import Problem, shorten
from higgs_trainer.limits import LONGEST_NUMBER


def build_decoder(path: Path, line: int, problems: list[Problem]) -> json.JSONDecoder:
    """Build a decoder that adds to ``problems`` what Python accepts silently, and numbers that it cannot convert.

    Any reading of a duplicate key, of NaN and of Infinity would be a guess. Python refuses to print an integer of
    thousands of digits, so a message about it would fail.
    """

    def add(what: str, what_to_do: str) -> None:
        problems.append(Problem(path, line, what, what_to_do))

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                if count > 1:
                    add(f'"{shorten(key)}" is given {count} times', "Keep one.")
        return row

    def reject_constant(name: str) -> str:
        add(f"{name} is not JSON", "Leave the field out, or write a string or a number.")
        return name

    def read_integer(digits: str) -> int:
        if len(digits) <= LONGEST_NUMBER:
            return int(digits)
        add(f"a number has {len(digits)} characters, more than {LONGEST_NUMBER}", "Write a shorter number.")
        return 0

    return json.JSONDecoder(
        object_pairs_hook=build_object, parse_constant=reject_constant, parse_int=read_integer
    )
