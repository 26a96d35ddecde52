"""What the tests of the papers' own runs share: those runs, and the settings that are compared with what is printed."""

import functools

from launch.cli import load_study_config
from sparsity.config import to_dict
from sparsity.run import run_config


@functools.cache
def paper_runs(study):
    """The typed runs of a study at the paper's scale; none if it has no such scale."""
    try:
        return [run_config(written) for written in load_study_config(study).sweep("paper")]
    except ValueError as error:
        if 'no scale "paper"' not in str(error):
            raise
        return []


def setting(config, key, *default):
    """The value, or the section, of a dotted key; `default`, if given, where the config leaves it out."""
    value = to_dict(config)
    *path, last = key.split(".")
    for part in path:
        value = value[part]
    return value.get(last, *default) if default else value[last]
