"""What very many trials over very many nodes cost the one process that leads them."""
