"""The way in: from a model to the passes and back."""
