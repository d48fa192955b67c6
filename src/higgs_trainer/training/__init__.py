"""Train a model: the Trainer, its loss and metrics, checkpoints, callbacks, and the tests of `check`."""
