"""Write ten recordings of two speakers with their texts: ``python scripts/list_recordings.py DIR``.

They are those of the Debian package pocketsphinx-testdata.
"""

import json
import re
import shutil
import sys
from pathlib import Path

TEST_DATA = Path("/usr/share/pocketsphinx/test/data")
TRANSCRIPTS = ("cards/cards.transcription", "librivox/transcription")


def list_recordings(output: Path) -> None:
    """Copy the recordings to ``output/wavs``, and write ``output/recordings.jsonl``."""
    if not TEST_DATA.is_dir():
        sys.exit("no recordings: apt-get install pocketsphinx-testdata")
    (output / "wavs").mkdir(parents=True, exist_ok=True)
    rows = []
    for transcript in TRANSCRIPTS:
        for line in (TEST_DATA / transcript).read_text(encoding="utf-8").splitlines():
            if found := re.fullmatch(r"<s> (.*\S) *</s> \((.*)\)", line.strip()):
                text, name = found.groups()
                shutil.copy((TEST_DATA / transcript).parent / f"{name}.wav", output / "wavs")
                rows.append({"audio": f"wavs/{name}.wav", "text": text, "language": "en"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (output / "recordings.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    list_recordings(Path(sys.argv[1]))
