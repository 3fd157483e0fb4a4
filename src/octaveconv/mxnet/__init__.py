"""Bringing weights in from elsewhere."""
