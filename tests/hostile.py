"""What hostile or damaged files are made of: values of any type for JSON, and bytes that are changed at random."""

import json

import numpy as np

from sparsity.config import ConfigError

# Python writes none of these in a config.json, but anybody may.
JSON = [
    *("null", "true", "0", "-1", "1", "7", "1.5", "-0.5", "2147483648", "1" + "0" * 300, "1e400", "NaN", "-Infinity"),
    *('""', '"x"', '"two\\nlines"', '"\\u001b[31m"', '"\\ud800"', "[]", "{}", "[1]", "[1, 2]", '["x"]', '{"a": 1}'),
    *("9" * 5000, "[" * 3000 + "]" * 3000),
]


def with_value(described, key, value):
    """A JSON object's text with the text `value` at `key`."""
    pairs = {**{name: json.dumps(one) for name, one in described.items()}, key: value}
    return "{" + ", ".join(f"{json.dumps(name)}: {one}" for name, one in pairs.items()) + "}"


def changed(data, number, seed=0, within=None):
    """`number` times the bytes, cut short, or with some that are flipped, zeroed, doubled or left out, or with others.

    `within`: how many of the first bytes are changed; all by default.
    """
    rng, within = np.random.default_rng(seed), within or len(data)
    for i in range(number):
        at = int(rng.integers(within))
        end = min(at + int(rng.integers(1, 9)), len(data))
        yield [
            data[:at],
            data[:at] + bytes(x ^ 1 << int(rng.integers(8)) for x in data[at:end]) + data[end:],
            data[:at] + bytes(end - at) + data[end:],
            data[:end] + data[at:],
            data[:at] + data[end:],
            data[:at] + rng.bytes(end - at) + data[end:],
        ][i % 6]


def refusal(attempt):
    """The line in which `attempt()` is refused, fit to be printed; None if it is not. Whatever else is raised, is."""
    try:
        attempt()
    except ConfigError as error:
        text = str(error)
    else:
        return None
    assert text.isprintable()
    assert 10 < len(text) < 2500
    return text
