"""The reward model: from verdicts to a score for any response, and how far that score can be believed."""
