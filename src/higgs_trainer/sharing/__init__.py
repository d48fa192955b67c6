"""Merge an adapter, convert a checkpoint, and write the model card."""
