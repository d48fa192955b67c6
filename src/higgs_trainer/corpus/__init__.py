"""Turn a manifest and its recordings into a prepared dataset."""
