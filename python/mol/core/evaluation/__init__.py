"""Measures language models on texts: bits per byte and perplexity by domain."""
