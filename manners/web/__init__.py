"""The people's side: one web application on a workspace; no file here imports torch."""
