-- Beside the database of runs, one of MLflow's users.
CREATE DATABASE mlflow_auth OWNER mlflow;
