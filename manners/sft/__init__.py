"""Supervised fine-tuning: examples of answers in, a branch that answers in their form out."""
