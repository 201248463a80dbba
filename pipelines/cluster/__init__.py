"""Clusters: local or remote Ray, checks of nodes, job submission, and ``rd3 doctor``."""
