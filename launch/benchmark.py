"""Times a suite: ratios of interleaved arms in one process, every round in the JSON. The suite `scale` only counts.

python -m launch.benchmark --suite=top_k --out=F.json
"""

from pathlib import Path

from absl import flags

from launch import cli
from sparsity.bench import SUITES, protocol
from sparsity.config import ConfigError, lookup
from sparsity.writer import write_json

_SUITE = flags.DEFINE_string("suite", None, f"what to time; there are: {', '.join(SUITES)}", required=True)
_OUT = flags.DEFINE_string("out", None, "JSON file for every round, ratio and kept count", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", protocol.ROUNDS, "rounds of every arm", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "toy sizes and 3 rounds: tests the suite, measures nothing")


def benchmark() -> int:
    """Prints each case's bars as it ends and writes the record; a missed bar is reported, not an error."""
    cases = lookup(SUITES, _SUITE.value, "suite")(_SMOKE.value)
    out = Path(_OUT.value)
    if not out.parent.is_dir():
        raise ConfigError(f"--out: no directory {out.parent}")
    cli.say_device()
    rounds, stream, tries = (3, 1 << 20, 1) if _SMOKE.value else (_ROUNDS.value, protocol.STREAM_BYTES, protocol.TRIES)
    records = []
    for case in cases:
        records.append(protocol.measure(case, rounds, stream, tries))
        print(*protocol.table(records[-1:]).splitlines()[2:], sep="\n", flush=True)
        header = {"suite": _SUITE.value, "rounds": rounds, "smoke": _SMOKE.value, "machine": protocol.machine()}
        write_json(out, header | {"cases": records})
        del case  # its arrays, before the next one makes its own
    print(protocol.table(records))
    return cli.DONE


if __name__ == "__main__":
    cli.main(benchmark)
