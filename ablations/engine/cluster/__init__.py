"""The servers that studies use: the local service, the MLflow server of a cluster, and the doctor that checks a cluster."""
