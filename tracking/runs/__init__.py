"""MLflow runs: their life, their fields, and the files that they keep."""
