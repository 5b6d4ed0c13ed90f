"""Language models: found, split into a shared trunk and branches, sampled from, and kept as versions."""
