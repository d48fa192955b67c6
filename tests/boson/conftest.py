"""Collect these tests only where boson_multimodal is installed.

It works only with transformers below 4.47, so `make test-boson` creates an environment for them.
"""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("boson_multimodal") else ["*.py"]
