"""The verbs of the command line: each module has ``add`` (its arguments; its text is the help) and ``run``."""
