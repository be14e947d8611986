"""Class heads: from text vectors, learnt, or linear as in published models."""
