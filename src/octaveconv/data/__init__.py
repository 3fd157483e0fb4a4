"""Labelled images: data sets of any kind, loaded and augmented."""
