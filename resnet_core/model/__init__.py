"""Networks of He et al. 2015 in PyTorch, their costs, their architecture tables and their exchange with torchvision."""
