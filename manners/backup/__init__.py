"""A workspace copied while it is in use, and put back: nothing is lost, and nothing comes back that was deleted."""
