"""Architectures of the table of networks; each takes the number of classes and the side in pixels."""
