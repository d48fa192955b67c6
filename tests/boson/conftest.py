"""These tests need boson_multimodal, which needs transformers below 4.47: `make test-boson` runs them in an environment
of their own. Elsewhere they are not collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("boson_multimodal") else ["*.py"]
