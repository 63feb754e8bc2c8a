from src.allocation import use_large_pages

use_large_pages()  # here, because it must be done before PyTorch makes its first tensor
