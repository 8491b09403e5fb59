"""What a process lives in: folders, storage, provenance, the terminal, signals. Knows nothing of studies."""
