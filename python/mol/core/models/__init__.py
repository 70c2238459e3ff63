"""Opens the models of a fusion: with which head, and which of their weights."""
