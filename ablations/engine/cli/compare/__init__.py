"""`ablations compare`: keep a change, discard it, or say how many more seeds a verdict takes."""
