"""Clusters: Ray on this machine or elsewhere, its nodes, jobs sent to it, and ``rd3 doctor``."""
