"""Judges of speech, the sentences that they judge, and the statistics of their scores."""
