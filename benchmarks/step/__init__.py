"""Speed of `fit` against PyTorch alone."""
