"""What the peers do in a benchmark; each runs in a virtual environment of its own, without manners."""
