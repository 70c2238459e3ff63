"""Runs the blocks of a transformers model one by one, in what the model itself would hand them, from where they are."""
