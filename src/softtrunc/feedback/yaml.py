"""YAML as people write it: `1e-5` is a number, `no` is a word."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import yaml

# Of a document with every alias written out. No recipe has a hundredth of it.
_MOST_NODES = 100_000
# Lists and mappings within each other. What walks over a recipe later does so by recursion.
_DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-5` as a string and `no` as false."""

    def get_single_node(self) -> yaml.Node | None:
        """The document; one that a few aliases make huge, or endless, is refused unread."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {}, set())
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    """A number; one that is too large is not silently infinity."""
    value: float = loader.construct_yaml_float(node)
    if math.isinf(value) and "inf" not in node.value.lower():
        raise ValueError(f"{node.value[:40]} is larger than any float: infinity is .inf")
    return value


_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def _count(node: yaml.Node, known: dict[int, int], open_: set[int]) -> int:
    """How many nodes there are with every alias written out."""
    if id(node) in open_:
        raise yaml.YAMLError("an alias stands within what it names")
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        count = 1 + sum(_count(part, known, open_ | {id(node)}) for part in parts)
        if count > _MOST_NODES:
            raise yaml.YAMLError(f"aliases make it more than {_MOST_NODES:,} values")
        known[id(node)] = count
    return known[id(node)]


def _refuse_twice(node: yaml.MappingNode) -> None:
    """PyYAML takes the last of two values for one key, and says nothing."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (key.tag, key.value) in seen:
            raise yaml.YAMLError(f"the key {key.value[:40]!r} stands twice")
        seen.add((key.tag, key.value))


# PyYAML makes values of words with no more care than this: 2001-99-99, 0b_, !!timestamp x.
_BY_CONSTRUCTORS = (ValueError, ArithmeticError, AttributeError, LookupError, TypeError)


def parse_yaml(text: str) -> object:
    """The value that a YAML document says.

    Raises:
        ValueError: in one line, if it is not YAML.
    """
    try:
        value: object = yaml.load(text, _Loader)
        deep = _depth(value) > _DEEPEST
    except RecursionError:
        deep = True
    except (yaml.YAMLError, *_BY_CONSTRUCTORS) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if deep:
        raise ValueError(f"not valid YAML: nested more than {_DEEPEST} deep")
    return value


def _depth(value: object) -> int:
    if isinstance(value, Mapping):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max(map(_depth, value), default=0)
    return 0


def dump_yaml(value: object) -> str:
    """A value as a YAML document, its keys in their order."""
    return yaml.safe_dump(_plain(value), sort_keys=False, default_flow_style=None, width=100)


def _plain(value: object) -> object:
    """Tuples as lists: YAML's safe dumper knows no tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
