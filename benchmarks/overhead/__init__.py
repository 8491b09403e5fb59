"""What a study costs beyond the training itself."""
