"""Build the objects of a run from a recipe, and run them. No other package reads a whole recipe."""
