"""What keeps a workspace sound: looked over, backed up on a schedule, and put back to see that it can be."""
