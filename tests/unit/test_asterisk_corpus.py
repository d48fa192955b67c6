"""The script that writes the tutorial's corpus: what it says where its Debian packages are missing."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_asterisk_corpus.py"


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    script = runpy.run_path(str(SCRIPT))
    main = script["main"]
    monkeypatch.setitem(
        main.__globals__, "NEEDED", {tmp_path / "texts.gz": "the-texts", tmp_path: "the-sounds"}
    )
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sys, "argv", ["build_asterisk_corpus.py", str(tmp_path / "corpus")])
    with pytest.raises(SystemExit, match=r"the-texts: not installed. Run: apt-get install the-texts"):
        main()
    assert not (tmp_path / "corpus").exists()
