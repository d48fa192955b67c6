"""Make text safe to print: characters that a terminal obeys are shown as escapes instead."""

import re

UNPRINTABLE = re.compile(
    "["
    # C0 without tab and newline, DEL and C1.
    "\x00-\x08\x0b-\x1f\x7f-\x9f"
    # Marks, overrides and isolates of the writing direction; invisible spaces; separators of lines; tags.
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f"
    # Halves of surrogate pairs, in which Python keeps the bytes of file names that are not UTF-8.
    "\ud800-\udfff"
    "]"
)
FIRST_BYTE, LAST_BYTE = 0xDC80, 0xDCFF


def make_printable(text: str) -> str:
    """Replace control characters by escapes such as ``\\x1b``. Text that has none is returned as it is."""
    return UNPRINTABLE.sub(_escape, text)


def make_line(text: object) -> str:
    """Return text as one line without control characters: line breaks become ``\\n``."""
    return make_printable(str(text)).replace("\n", "\\n")


def join_lines(text: object) -> str:
    """Return text with single spaces in place of line breaks and other white space, as for the message of a library."""
    return " ".join(str(text).split())


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if FIRST_BYTE <= code <= LAST_BYTE:
        # The byte of a file name that is not UTF-8.
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
