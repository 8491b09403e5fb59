"""How studies run and become evidence."""
