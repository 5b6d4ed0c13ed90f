"""Other people's files: what they are made of, what their rows mean, and how these come into the store and go out."""
