"""The Python API: run a study or load it from MLflow, with the options of the command line as keywords."""
