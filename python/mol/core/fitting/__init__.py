"""Fits adapters to hidden states of two models on the same text, and suggests blocks that fit."""
