"""Ablations: suites of experiments, run with one command (`dataseg.ablation.runner`)."""
