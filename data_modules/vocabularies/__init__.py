"""Class names, ids, prompts and colours of each data set: data, not code."""
