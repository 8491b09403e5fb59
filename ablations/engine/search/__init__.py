"""Which configurations a search tries next."""
