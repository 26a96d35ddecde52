import dataclasses
import hashlib
import json
from typing import Any, Literal

import pytest
from ml_collections import ConfigDict

from sparsity.config import (
    ConfigError,
    build,
    config_hash,
    differences,
    flatten,
    later,
    lookup,
    nearest,
    one_of,
    to_dict,
)


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float = 1.0

    def __post_init__(self):
        if self.radius <= 0:
            raise ValueError(f"radius: must be positive, got {self.radius}")


@dataclasses.dataclass(frozen=True)
class Square:
    side: int


SHAPES = {"circle": Circle, "square": Square}


@dataclasses.dataclass(frozen=True)
class Paper:
    width: int = 3
    corner: tuple[int, float] = (0, 0.0)


@dataclasses.dataclass(frozen=True)
class Drawing:
    title: str
    shape: Any = one_of(SHAPES, Circle())
    paper: Paper = Paper()
    colour: Literal["red", "green"] = "red"
    tags: tuple[str, ...] = ()
    scale: float | None = None
    signed: bool = False


def test_an_empty_section_takes_every_default():
    assert build(Drawing, {"title": "a"}) == Drawing("a")


def test_a_config_dict_builds_the_same_as_a_dict():
    section = {"title": "a", "shape": {"name": "square", "side": 2}, "paper": {"width": 5}}
    expected = Drawing("a", shape=Square(2), paper=Paper(5))
    assert build(Drawing, section) == expected
    assert build(Drawing, ConfigDict(section)) == expected


def test_a_tagged_union_becomes_the_dataclass_of_its_name():
    assert build(Drawing, {"title": "a", "shape": {"name": "circle", "radius": 2.5}}).shape == Circle(2.5)
    assert build(Drawing, {"title": "a", "shape": {"name": "square", "side": 4}}).shape == Square(4)


def test_an_int_is_taken_for_a_float_and_becomes_one():
    built = build(Drawing, {"title": "a", "shape": {"name": "circle", "radius": 2}, "scale": 3})
    assert (built.shape.radius, built.scale) == (2.0, 3.0)
    assert isinstance(built.shape.radius, float)
    assert isinstance(built.scale, float)


def test_lists_become_tuples():
    built = build(Drawing, {"title": "a", "tags": ["x", "y"], "paper": {"corner": [1, 2]}})
    assert built.tags == ("x", "y")
    assert built.paper.corner == (1, 2.0)


def test_none_is_taken_only_where_the_annotation_allows_it():
    assert build(Drawing, {"title": "a", "scale": None}).scale is None
    with pytest.raises(ConfigError, match=r"^config\.title: expected str, got NoneType None$"):
        build(Drawing, {"title": None})


REFUSED = [
    ({}, "config.title: required, not given"),
    ({"title": "a", "shape": {"name": "square"}}, "config.shape.side: required, not given"),
    ({"title": "a", "colours": "red"}, 'config.colours: unknown key; did you mean "colour"?'),
    ({"title": "a", "paper": {"widht": 1}}, 'config.paper.widht: unknown key; did you mean "width"?'),
    ({"title": "a", "paper": {"zzz": 1}}, "config.paper.zzz: unknown key; valid: corner, width"),
    ({"title": "a", "shape": {"name": "cirle"}}, 'config.shape.name: unknown name "cirle"; did you mean "circle"?'),
    ({"title": "a", "shape": {"name": "zzz"}}, 'config.shape.name: unknown name "zzz"; valid: circle, square'),
    ({"title": "a", "shape": {"name": ["circle"]}}, "config.shape.name: "),
    ({"title": "a", "shape": {"radius": 1.0}}, "config.shape: expected a section with a name; valid: circle, square"),
    ({"title": "a", "shape": "circle"}, "config.shape: expected a section with a name"),
    ({"title": "a", "shape": {"name": "circle", "side": 1}}, "config.shape.side: unknown key"),
    ({"title": "a", "shape": {"name": "circle", "radius": -1.0}}, "config.shape.radius: must be positive, got -1.0"),
    ({"title": "a", "colour": "gren"}, 'config.colour: unknown choice "gren"; did you mean "green"?'),
    ({"title": "a", "paper": {"width": 2.0}}, "config.paper.width: expected int, got float 2.0"),
    ({"title": "a", "paper": {"width": True}}, "config.paper.width: expected int, got bool True"),
    ({"title": "a", "paper": {"width": "3"}}, "config.paper.width: expected int, got str '3'"),
    ({"title": "a", "scale": True}, "config.scale: expected float, got bool True"),
    ({"title": "a", "scale": float("nan")}, "config.scale: expected a finite number, got nan"),
    ({"title": "a", "scale": float("inf")}, "config.scale: expected a finite number, got inf"),
    ({"title": "a", "signed": 1}, "config.signed: expected bool, got int 1"),
    ({"title": "a", "tags": "xy"}, "config.tags: expected a tuple, got 'xy'"),
    ({"title": "a", "tags": ("x", 1)}, "config.tags[1]: expected str, got int 1"),
    ({"title": "a", "paper": {"corner": (1, 2.0, 3)}}, "config.paper.corner: expected 2 values, got 3"),
    ({"title": "a", "paper": 3}, "config.paper: expected a section, got 3"),
]


@pytest.mark.parametrize(("section", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_a_mistake_is_refused_in_one_line_that_says_where(section, message):
    with pytest.raises(ConfigError) as caught:
        build(Drawing, section)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_nearest_offers_the_closest_word_and_else_all_of_them():
    assert nearest("laers", ["layers", "heads"]) == '; did you mean "layers"?'
    assert nearest("zzz", ["layers", "heads"]) == "; valid: heads, layers"


def test_lookup_returns_the_entry_or_raises_the_error_asked_for():
    assert lookup({"a": 1}, "a", "thing") == 1
    with pytest.raises(KeyError, match="unknown thing"):
        lookup({"a": 1}, "b", "thing", KeyError)
    with pytest.raises(ConfigError, match='unknown thing "b"; valid: a'):
        lookup({"a": 1}, "b", "thing")


FULL = Drawing("a", Square(7), Paper(2, (1, 0.5)), "green", ("x",), 0.25, True)


def test_to_dict_is_plain_json_with_the_names_of_unions():
    assert to_dict(FULL) == {
        "title": "a",
        "shape": {"name": "square", "side": 7},
        "paper": {"width": 2, "corner": [1, 0.5]},
        "colour": "green",
        "tags": ["x"],
        "scale": 0.25,
        "signed": True,
    }


@pytest.mark.parametrize("config", [FULL, Drawing("b"), Drawing("c", Circle(0.1))])
def test_build_inverts_to_dict_even_through_json(config):
    assert build(Drawing, json.loads(json.dumps(to_dict(config)))) == config


def test_the_hash_is_ten_hex_digits_of_the_sha256_of_sorted_compact_json():
    text = '{"corner":[1,0.5],"width":2}'
    assert config_hash(Paper(2, (1, 0.5))) == hashlib.sha256(text.encode()).hexdigest()[:10]


def test_the_hash_ignores_how_a_config_was_written_and_notices_every_change():
    written = build(Drawing, {"shape": {"radius": 1, "name": "circle"}, "title": "a"})
    assert config_hash(written) == config_hash(Drawing("a"))
    changed = [
        dataclasses.replace(FULL, **{field: value})
        for field, value in {
            "title": "b",
            "shape": Square(8),
            "paper": Paper(3, (1, 0.5)),
            "colour": "red",
            "tags": (),
            "scale": None,
            "signed": False,
        }.items()
    ]
    assert len({config_hash(c) for c in [FULL, *changed]}) == 1 + len(changed)


def test_a_later_field_changes_no_hash_until_it_is_set():
    @dataclasses.dataclass(frozen=True)
    class NewPaper(Paper):
        folds: tuple[int, ...] = later(())

    assert config_hash(NewPaper(2, (1, 0.5))) == config_hash(Paper(2, (1, 0.5)))
    assert differences(to_dict(Paper()), to_dict(NewPaper())) == {}
    folded = NewPaper(folds=(1, 2))
    assert to_dict(folded) == {"width": 3, "corner": [0, 0.0], "folds": [1, 2]}
    assert config_hash(folded) != config_hash(NewPaper())
    for paper in (NewPaper(), folded):
        assert build(NewPaper, to_dict(paper)) == paper


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_differences_lists_each_key_with_both_values():
    old = {"a": {"b": 1, "c": 2}, "same": (1, 2), "gone": 4}
    new = {"a": {"b": 1, "c": 3}, "same": [1, 2], "added": 5}
    assert differences(old, new) == {"a.c": (2, 3), "added": (None, 5), "gone": (4, None)}
    assert differences(old, old) == {}


def test_a_later_choice_changes_no_hash_until_it_is_made():
    @dataclasses.dataclass(frozen=True)
    class Framed(Paper):
        frame: Any = one_of(SHAPES, None, later=True)

    @dataclasses.dataclass(frozen=True)
    class Rounded(Paper):
        frame: Any = one_of(SHAPES, Circle(), later=True)

    for cls, chosen in ((Framed, Circle()), (Rounded, Circle(2.0))):
        assert config_hash(cls()) == config_hash(Paper())
        assert differences(to_dict(Paper()), to_dict(cls())) == {}
        framed = cls(frame=chosen)
        assert to_dict(framed)["frame"] == {"name": "circle", "radius": chosen.radius}
        assert config_hash(framed) != config_hash(cls())
        for paper in (cls(), framed):
            assert build(cls, json.loads(json.dumps(to_dict(paper)))) == paper
    assert to_dict(Rounded(frame=Square(1)))["frame"] == {"name": "square", "side": 1}


def test_a_later_choice_is_refused_like_any_other():
    @dataclasses.dataclass(frozen=True)
    class Framed(Paper):
        frame: Any = one_of(SHAPES, None, later=True)

    with pytest.raises(ConfigError, match=r'^config\.frame\.name: unknown name "squar"; did you mean "square"\?$'):
        build(Framed, {"frame": {"name": "squar", "side": 1}})
    with pytest.raises(ConfigError, match=r'^config\.fram: unknown key; did you mean "frame"\?$'):
        build(Framed, {"fram": {"name": "square", "side": 1}})
