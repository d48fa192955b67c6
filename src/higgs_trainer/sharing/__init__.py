"""Prepare a trained model for others: merge, convert, model card."""
