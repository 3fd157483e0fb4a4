"""Weights in files: whose names they have, of which alpha they are, where they come from."""
