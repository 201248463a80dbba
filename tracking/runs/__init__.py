"""MLflow runs: their life cycle, their fields and their files."""
