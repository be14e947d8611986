"""Configuration files: `extends`, differences between two of them, and objects built from them."""
