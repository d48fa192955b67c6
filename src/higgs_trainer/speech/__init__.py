"""Speech out of a trained model, and how good it is: generate, evaluate, listen."""
