"""Studies that are killed until they are done."""
