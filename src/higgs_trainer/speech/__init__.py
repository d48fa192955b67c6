"""Generate speech with a trained model: prompts, sampling, and folders of clips."""
