"""What a reward model likes, and what a version must show: figures that the gate holds against its rules."""
