"""Experiments behind the defaults: each a script that goes on where it was stopped, and publishes a table."""
