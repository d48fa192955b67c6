"""Collect these tests only where boson_multimodal is installed.

It works only with transformers below 4.47, so `make test-boson` creates an environment for them.
"""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("boson_multimodal") else ["*.py"]
if "HIGGS_AUDIO_TRAINER" not in os.environ:
    # The copy of a public trainer that these tests run is fetched by hand: docs/foreign_trainers.md.
    collect_ignore_glob.append("test_fetched_trainer.py")
