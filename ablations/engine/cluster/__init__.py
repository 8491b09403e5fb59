"""The local service, MLflow's server, and the doctor that examines a cluster."""
