"""A trained model becomes one that others can open: merge, convert, model card."""
