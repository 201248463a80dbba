"""Families of diffusion backbones, one file each."""
