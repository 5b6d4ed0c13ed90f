"""Who says which of two responses is better."""
