"""Checkpoints: on disk, on the Hub, and the files around the weights."""
