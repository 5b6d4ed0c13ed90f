"""The loop: its stages one by one, and a round that runs them in order."""
