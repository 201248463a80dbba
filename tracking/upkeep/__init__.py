"""Upkeep of ledger and artifacts: verify, rebuild, remove garbage, upgrade, and check the servers."""
