"""Grids: read a grid file, check it, expand it into recipes, plan it, and queue what is to run."""
