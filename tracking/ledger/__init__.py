"""The ledger, on an object store in a folder or on S3: entries, lease, calibrations."""
