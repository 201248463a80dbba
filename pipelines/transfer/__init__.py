"""Transfer between machines: results in and out of a ledger, and datasets that nodes lack."""
