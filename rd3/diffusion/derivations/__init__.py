"""Derivations from diffusion backbones, one file each."""
