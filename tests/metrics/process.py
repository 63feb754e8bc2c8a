"""One process of the distributed test: score a share of the images, print what `compute` returns.

Run as ``python process.py RANK WORLD_SIZE STORE MAPS``; MAPS is an .npz with arrays prediction and label of
shape (images, H, W). The first process takes one image, the last takes the rest.
"""

import json
import sys

import numpy as np
import torch
import torch.distributed as dist

from src.metrics.suite import SegmentationMetrics


def main() -> None:
    rank, world_size = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world_size)
    maps = np.load(sys.argv[4])
    metrics = SegmentationMetrics(num_classes=4)
    images = range(1) if rank == 0 else range(1, len(maps["label"]))
    for index in images:
        metrics.update(*(torch.from_numpy(maps[key][index]) for key in ("prediction", "label")))
    print(json.dumps({key: value.tolist() for key, value in metrics.compute().items()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
