"""Training: what turns captioned pictures into the weights of a model."""
