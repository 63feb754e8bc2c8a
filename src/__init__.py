from src.allocation import use_large_pages
from src.machine import share_cores

share_cores()  # here, because it must be done before PyTorch is loaded
use_large_pages()  # and this before it makes its first tensor
