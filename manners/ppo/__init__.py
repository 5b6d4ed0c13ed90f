"""Proximal policy optimisation of the policy branch against a reward model."""
