"""Pre-training: text in, a language model out."""
