"""Models in one file: export, prediction, traced networks, the Hugging Face hub."""
