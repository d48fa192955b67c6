"""The composition root: a recipe becomes objects, and the objects become a run."""
