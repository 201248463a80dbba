"""Grids: read and check a grid file, expand it into recipes, plan it, and schedule the recipes."""
