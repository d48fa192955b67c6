"""Judges, what they judge, and the statistics of their scores."""
