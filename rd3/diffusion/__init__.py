"""Diffusion backbones: trained or imported, sampled by one loop, fine-tuned and clustered by derivations."""
