"""Verdicts -> policy without a reward model: direct preference optimisation, the rival of reward model and PPO."""
