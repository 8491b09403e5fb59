"""From runs to findings: statistics, without Ray, MLflow or torch."""
