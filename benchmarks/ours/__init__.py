"""What manners does in a benchmark: one script a contender, each a process of its own."""
