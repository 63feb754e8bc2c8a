from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from src.data.classes import ClassMap, Taxonomy
from src.structures import IGNORE


def test_taxonomy_keeps_the_order_of_the_mapping(taxonomy: Taxonomy) -> None:
    assert taxonomy.names == ("background", "person", "sky")
    assert taxonomy.num_classes == 3
    assert taxonomy.ids == {"background": 0, "person": 1, "sky": 2}


def test_released_ids_and_colours() -> None:
    config = Path(__file__).parents[2] / "conf/data/classes/mass13k.yaml"
    taxonomy = Taxonomy.from_mapping(yaml.safe_load(config.read_text()))
    assert taxonomy.names == ("background", "person", "building", "tree", "ground", "sky", "water")
    assert taxonomy.colours[[2, 4]].tolist() == [[64, 34, 64], [93, 64, 0]]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "0 classes"),
        ({f"class {i}": [0, 0, 0] for i in range(255)}, "255 classes"),
        ({"sky": [0, 0]}, "'sky'"),
        ({"sky": [0, 0, 256]}, "'sky'"),
        ({"sky": [0, 0, 0.5]}, "'sky'"),
        ({0: [0, 0, 0]}, "class 0: a name is text"),
        ({"mean": [0, 0, 0]}, "choose another name"),
        ({"ignore": [0, 0, 0]}, "choose another name"),
        ({"sky": None}, "'sky'"),
        (["sky", "tree"], "mapping of names to colours"),
    ],
)
def test_impossible_taxonomies(classes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Taxonomy.from_mapping(classes)


class TestClassMap:
    def test_without_mapping_ids_stay(self, taxonomy: Taxonomy) -> None:
        raw = np.array([[0, 1], [2, 255]], dtype=np.uint8)
        np.testing.assert_array_equal(ClassMap(taxonomy)(raw, "a.png"), raw)

    def test_names_ids_and_ignore(self, taxonomy: Taxonomy) -> None:
        mapping = {0: "sky", 7: 1, 8: "ignore", 9: 255, 254: "background"}
        raw = np.array([[0, 7, 8], [9, 254, 255]], dtype=np.uint8)
        expected = [[2, 1, IGNORE], [IGNORE, 0, IGNORE]]
        assert ClassMap(taxonomy, mapping)(raw, "a.png").tolist() == expected

    def test_raw_255_can_be_a_class(self, taxonomy: Taxonomy) -> None:
        raw = np.array([[0, 255]], dtype=np.uint8)
        assert ClassMap(taxonomy, {0: 0, 255: "person"})(raw, "a.png").tolist() == [[0, 1]]

    def test_windows_of_a_larger_map(self, taxonomy: Taxonomy) -> None:
        raw = np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8)[3:9, 4:11]
        np.testing.assert_array_equal(ClassMap(taxonomy, {0: 2, 1: 1, 2: 0})(raw, "a.png"), 2 - raw)

    def test_unknown_ids_are_named_and_counted(self, taxonomy: Taxonomy) -> None:
        raw = np.array([[0, 5, 5], [254, 1, 2]], dtype=np.uint8)
        with pytest.raises(ValueError, match=r"street\.png.*5 \(2 pixels\), 254 \(1 pixels\).*class_map"):
            ClassMap(taxonomy)(raw, "street.png")

    @pytest.mark.parametrize(
        ("mapping", "message"),
        [
            ({0: "cloud"}, "raw id 0 maps to 'cloud'.*2 sky"),
            ({0: 3}, "raw id 0 maps to 3"),
            ({0: -1}, "raw id 0 maps to -1"),
            ({256: "sky"}, "raw id 256"),
            ({-1: "sky"}, "raw id -1"),
            ({"sky": 0}, "'sky' is no raw id"),
            ({0.5: "sky"}, "0.5 is no raw id"),
        ],
    )
    def test_impossible_mappings(
        self, taxonomy: Taxonomy, mapping: dict[int, int | str], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            ClassMap(taxonomy, mapping)
