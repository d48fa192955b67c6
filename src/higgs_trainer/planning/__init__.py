"""Predict the memory and the time of a training step from a recipe, before any weight is loaded."""
