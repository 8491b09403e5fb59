"""Training and evaluation of a network in plain PyTorch. `loop.fit` assembles the other modules."""
