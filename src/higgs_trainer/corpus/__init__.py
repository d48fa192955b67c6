"""A manifest and its recordings become a prepared dataset."""
