"""Read the name of a language as its code."""

import re

CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*")


def find_code(name: str) -> str:
    """Return the code of a language that is given by its English name: "nl" for "Dutch".

    A code, such as "nl" or "pt_BR", and a name that is not known are returned as they are.
    """
    plain = name.strip()
    if CODE.fullmatch(plain):
        return plain
    # A slow import, which only names need.
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return str(TO_LANGUAGE_CODE.get(plain.lower(), plain))


def find_plain_code(name: str) -> str:
    """Return the code of a language without its region, in small letters: "pt" for "pt_BR" and "Portuguese"."""
    return find_code(name).lower().replace("_", "-").partition("-")[0]
