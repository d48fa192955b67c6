"""Collect these tests only where the foreign trainers are installed.

`make test-guard-foreign` creates an environment for them.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

LIBRARIES = ("trl", "sentence_transformers")

collect_ignore_glob = [] if all(map(find_spec, LIBRARIES)) else ["test_*.py"]
