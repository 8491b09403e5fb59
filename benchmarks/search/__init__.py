"""Cost of a trial of a search besides its training, and the growth of memory."""
