"""Paths on the command line are taken as they are."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.config import compose_config, quoted_paths


@pytest.mark.parametrize(
    "path",
    [
        *(" lead", "trail ", "'a", '"b'),
        *(
            "Fotos/Ähre.jpg",
            "写真",
            "~/x",
            "a#b",
            "a&b;c!",
            "it's",
            "a,b",
            "2024",
            "1e3",
            "true",
            "x y",
            "a=b",
            "(x)",
        ),
        *(
            "[a].jpg",
            "[a,b]",
            "{x: 1}",
            'a"b',
            "a\\",
            'a\\"b',
            'a\\\\"',
            'ünï"\\',
            "choice(a,b)",
            "s3://b/k",
            "plain/p.jpg",
        ),
    ],
)
def test_whatever_characters_a_path_has(path: str) -> None:
    for key in ("input", "data.root", "+data.folders.train.images"):
        (override,) = quoted_paths([f"{key}={path}"])
        parsed = OverridesParser.create().parse_override(override)
        assert not parsed.is_sweep_override()
        assert parsed.value() == path
        assert quoted_paths([override]) == [override]  # as in the processes of other devices
    assert compose_config("predict", [f"input={path}"]).input == path


def test_what_is_no_path_or_has_a_meaning_stays() -> None:
    same = [
        "seed=1,2",
        "input=null",
        'input="x"',
        "output='a b'",
        "experiment=ä",
        "input",
        "~data.store",
        "input=",
    ]
    assert quoted_paths(same) == same
    sweep = ["-m", "data.root=/a,/b", "seed=1,2"]
    assert quoted_paths(sweep) == sweep
    assert quoted_paths(["--multirun", "resume=Ä"]) == ["--multirun", 'resume="Ä"']
