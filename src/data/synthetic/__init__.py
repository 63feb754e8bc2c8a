"""Synthetic matting-level scenes: the dataset that comes with the project and needs no download."""

from src.data.synthetic.dataset import GENERATOR_VERSION, holds_scenes, write_synthetic_dataset
from src.data.synthetic.scene import draw_scene

__all__ = ["GENERATOR_VERSION", "draw_scene", "holds_scenes", "write_synthetic_dataset"]
