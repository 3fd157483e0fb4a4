"""Measuring: the one stopwatch."""
