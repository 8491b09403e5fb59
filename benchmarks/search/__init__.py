"""What a trial of a search costs besides its training, and whether memory grows."""
