"""The ledger, stored as objects in a folder or on S3: entries, lease and calibrations."""
