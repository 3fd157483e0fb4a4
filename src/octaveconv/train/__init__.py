"""Training: the recipe, the loop, and the folder that a run leaves."""
