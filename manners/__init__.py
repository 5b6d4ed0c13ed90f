"""The whole loop of reinforcement learning from human feedback: one tool, one folder on disk."""

__version__ = "0.1.0"
