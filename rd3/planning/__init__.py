"""Plan a result before anything runs: its recipes and their cost."""
