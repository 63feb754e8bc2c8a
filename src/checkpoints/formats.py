"""Checkpoints of other programs that this project converts, one entry each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor

from src.checkpoints.architecture import mask2former_overrides, massformer_overrides
from src.checkpoints.mask2former_hf import from_hugging_face, to_hugging_face
from src.checkpoints.names import translate
from src.checkpoints.released_massformer import RELEASED_MASSFORMER

State = Mapping[str, Tensor]


class Format(NamedTuple):
    """How another program names the tensors of a network that this project can build.

    Attributes:
        description: one line for the command line's help.
        to_ours: renames their tensors to ours. NameTableError when one has no place.
        to_theirs: the inverse.
        overrides: configuration overrides that build the network, deduced from tensors under our names; the
            number of classes is left out. NameTableError when they do not tell.
    """

    description: str
    to_ours: Callable[[State], dict[str, Tensor]]
    to_theirs: Callable[[State], dict[str, Tensor]]
    overrides: Callable[[State], list[str]]


FORMATS: dict[str, Format] = {
    "massformer-release": Format(
        "the authors' MaSSFormer code (mmengine), with any ResNet",
        partial(translate, table=RELEASED_MASSFORMER),
        partial(translate, table=RELEASED_MASSFORMER, reverse=True),
        massformer_overrides,
    ),
    "mask2former-hf": Format(
        "Mask2Former of Hugging Face transformers (model.safetensors), with ResNet or Swin",
        from_hugging_face,
        to_hugging_face,
        mask2former_overrides,
    ),
}
