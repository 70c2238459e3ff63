"""Fits adapters to hidden states of two models on the same text, and finds blocks that fit."""
