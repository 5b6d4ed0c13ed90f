"""Pages for people and a server for programs, on one workspace."""
