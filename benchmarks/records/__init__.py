"""How MLflow's databases bear many runs: looking them up, writing one more, a report."""
