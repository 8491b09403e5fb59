"""The environment of a process: folders, storage, provenance, terminal output, signals. Independent of studies."""
