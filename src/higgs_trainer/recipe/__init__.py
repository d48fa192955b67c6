"""The configuration of a run, and the code that reads and writes it."""
