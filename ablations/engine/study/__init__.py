"""A question as plain data: its factors, the cells and runs they expand to, and what a submission asks for."""
