"""Collect these tests only where bitsandbytes is installed: `make test-quantization`.

The environment of `make test` does not have it, because PEFT imports it in every process, which takes a second.
"""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("bitsandbytes") else ["*.py"]
