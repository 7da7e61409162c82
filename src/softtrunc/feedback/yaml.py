"""YAML as people write it: `1e-5` is a number, `no` is a word."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-5` as a string and `no` as false."""


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


def parse_yaml(text: str) -> object:
    """The value that a YAML document says.

    Raises:
        ValueError: in one line, if it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


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
