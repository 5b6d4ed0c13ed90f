"""Side by side with the trainers that people use today: same model, same work, one machine, one run."""
