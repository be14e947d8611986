"""What is written for TensorBoard alone."""
