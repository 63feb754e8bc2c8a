from src.allocation import reuse_large_blocks

reuse_large_blocks()  # here, because it must be done before PyTorch makes its first tensor
