"""How a model is built, as its tensors' names and its config.json show: layers, ends, names that correspond."""
