"""Studies as plain data: factors, the cells and runs that they expand to, and the request of a submission."""
