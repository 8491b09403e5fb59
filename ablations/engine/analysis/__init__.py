"""Statistics: turn the evidence of a study into findings, without Ray, MLflow or torch."""
