"""Speed of MLflow's databases with many runs: looking them up, writing one more, a report."""
