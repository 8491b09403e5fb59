"""How fast `fit` trains, against PyTorch alone."""
