"""Transfer between machines: results of a ledger, and datasets for cluster nodes."""
