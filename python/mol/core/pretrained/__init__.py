"""Fused models as transformers know models: config, save and load, loss, generate."""
