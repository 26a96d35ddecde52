"""What devices exchange in a compiled program, read from its text.

The text is HLO's, as `compiled.as_text()` gives it: every computation with its instructions, one a line. An exchange
counts where it starts; that it is waited for later is no second one. What a loop does counts as often as the loop runs,
where the compiler says how often that is or the loop counts from a constant to another, by one as JAX's scans do.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
PER_ITERATION, IF_TAKEN = "per iteration", "if taken"

_BYTES = {  # of a number, by the end of its type's name
    **{"pred": 1.0, "token": 0.0, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "f4e2m1fn": 0.5},
    **{f"{sign}{bits}": bits / 8 for sign in "su" for bits in (8, 16, 32, 64)},
    **{"f16": 2.0, "bf16": 2.0, "f32": 4.0, "f64": 8.0, "c64": 8.0, "c128": 16.0},
}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\]")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+)\s*(\(.*)?\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_WHOLE = re.compile(r"-?\d+$")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices, as one of them sees it.

    Attributes:
      kind: one of `KINDS`.
      devices: that exchange with one another.
      bytes: of what is exchanged, on one device: all that is gathered; of other kinds what goes in.
      times: how often, in a run of the program.
      when: empty; or `PER_ITERATION`: `times` is of one iteration of a loop of unknown length; or `IF_TAKEN`: it is in
        a branch.
    """

    kind: str
    devices: int
    bytes: float
    times: int
    when: str = ""

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time, if devices form a ring: to reduce is to scatter and then to gather."""
        share = (self.devices - 1) / self.devices
        return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share) * self.bytes


@dataclasses.dataclass(frozen=True)
class Total:
    """Exchanges of one kind together: how many, their bytes and those sent, in a run of the program."""

    kind: str
    when: str
    times: int
    bytes: float
    sent: float


def totals(found: Iterable[Collective]) -> list[Total]:
    """One `Total` for each kind and each `when`, in the order of `KINDS`."""
    found, out = list(found), []
    for kind in KINDS:
        for when in ("", PER_ITERATION, IF_TAKEN):
            if ours := [c for c in found if (c.kind, c.when) == (kind, when)]:
                size, sent = sum(c.times * c.bytes for c in ours), sum(c.times * c.sent for c in ours)
                out.append(Total(kind, when, sum(c.times for c in ours), size, sent))
    return out


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One line: what it makes, of what, and how; and whether it is what its computation returns."""

    type: str
    opcode: str
    operands: str
    attributes: str
    root: bool = False


_Computations = dict[str, dict[str, _Instruction]]


def collectives(text: str) -> tuple[Collective, ...]:
    """The exchanges of a program, those of one computation in the order of its text.

    Groups of one device exchange nothing and are left out.

    Raises:
      ValueError: `text` is not the HLO of a program.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError("collectives: the text is no HLO of a program: it has no ENTRY")
    found = re.search(r"num_partitions=(\d+)", text)
    return tuple(_walk(computations, entry, 1, "", int(found[1]) if found else 1))


def _parse(text: str) -> tuple[_Computations, str | None]:
    """The instructions of every computation, by their names, and the name of the first computation to run."""
    computations: _Computations = {}
    entry, current = None, None
    for line in text.splitlines():
        if current is not None and (found := _INSTRUCTION.match(line)):
            current[found[2]] = dataclasses.replace(_instruction(line[found.end() :]), root=bool(found[1]))
        elif not line.startswith(("HloModule", " ")) and (found := _HEADER.match(line.rstrip())):
            current = computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
    return computations, entry


def _instruction(text: str) -> _Instruction:
    """Of what stands behind the equals sign: `type opcode(operands), attributes`."""
    end = _closing(text, 0) if text.startswith("(") else text.find(" ")
    kind, rest = text[:end], text[end:]
    found = _OPCODE.match(rest)
    if found is None:
        return _Instruction(kind, "", "", rest)
    close = _closing(rest, found.end() - 1)
    return _Instruction(kind, found[1], rest[found.end() : close - 1], rest[close:])


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    return len(text)


def _walk(computations: _Computations, name: str, times: int, when: str, partitions: int) -> Iterator[Collective]:
    """The exchanges of a computation that runs `times`, and of those that it calls."""
    inside = computations.get(name, {})
    for instruction in inside.values():
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            # TPUs have reductions of which each device keeps its part, written as a whole one and a slice of it.
            scattered = kind == "all-reduce" and "all-reduce-scatter" in name
            devices = _devices(instruction.attributes, partitions)
            size = sum(_size(type_) for type_ in _operand_types(instruction.operands, inside))
            size *= devices if kind == "all-gather" else 1
            if devices > 1:
                yield Collective("reduce-scatter" if scattered else kind, devices, size, times, when)
        for callee, more, condition in _calls(computations, inside, instruction):
            yield from _walk(computations, callee, times * more, condition or when, partitions)


def _calls(
    computations: _Computations, inside: Mapping[str, _Instruction], instruction: _Instruction
) -> Iterator[tuple[str, int, str]]:
    """The computations that an instruction runs, how often, and `when`."""
    opcode, attributes = instruction.opcode, instruction.attributes
    if opcode == "while":
        trips = _trips(computations, inside, instruction)
        for callee in _named(attributes, "condition|body"):
            yield callee, 1 if trips is None else trips, PER_ITERATION if trips is None else ""
    elif opcode == "conditional":
        for callee in _named(attributes, "true_computation|false_computation|branch_computations"):
            yield callee, 1, IF_TAKEN
    elif opcode in ("call", "fusion", "async-start", "custom-call"):
        for callee in _named(attributes, "calls|to_apply|called_computations"):
            yield callee, 1, ""


def _trips(computations: _Computations, inside: Mapping[str, _Instruction], loop: _Instruction) -> int | None:
    """How often a loop runs; None where it is not known. Compilers for TPUs leave it to the condition, i < constant."""
    if said := _TRIPS.search(loop.attributes):
        return int(said[1])
    [condition] = _named(loop.attributes, "condition")
    test = computations.get(condition, {})
    root = next((one for one in test.values() if one.root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
        return None  # it may end for another reason too
    counter, bound = (test.get(name) for _, name in _operands(root.operands))
    place = re.search(r"index=(\d+)", counter.attributes) if counter and counter.opcode == "get-tuple-element" else None
    [(_, carried)] = _operands(loop.operands)
    if place is None or carried not in inside or inside[carried].opcode != "tuple":
        return None
    first = inside.get(list(_operands(inside[carried].operands))[int(place[1])][1])
    while first is not None and first.opcode == "copy":
        first = inside.get(next(_operands(first.operands))[1])
    ends = [one.operands for one in (first, bound) if one is not None and one.opcode == "constant"]
    return max(int(ends[1]) - int(ends[0]), 0) if len(ends) == 2 and all(map(_WHOLE.match, ends)) else None


def _named(attributes: str, keys: str) -> list[str]:
    """The names of computations behind any of `keys`: `key=%name` or `key={%name, %other}`."""
    lists = re.findall(rf"\b(?:{keys})=(?:\{{([^}}]*)\}}|([%\w.\-]+))", attributes)
    return [name.strip().lstrip("%") for several, one in lists for name in (several or one).split(",") if name.strip()]


def _devices(attributes: str, partitions: int) -> int:
    """How many devices exchange with one another."""
    if "source_target_pairs=" in attributes:
        return 2
    if counts := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(counts[1])
    if first := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(first[1].split(","))
    return partitions


def _operand_types(operands: str, inside: Mapping[str, _Instruction]) -> Iterator[str]:
    """The type of each operand: as it stands in front of its name, or as the instruction of that name has it."""
    for type_, name in _operands(operands):
        if type_:
            yield type_
        elif name in inside:
            yield inside[name].type


def _operands(operands: str) -> Iterator[tuple[str, str]]:
    """The type of each operand, empty where none stands there, and its name."""
    depth, start, operands = 0, 0, re.sub(r"/\*.*?\*/", "", operands)
    for i, character in enumerate(f"{operands},"):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            operand, start = operands[start:i].strip(), i + 1
            type_, _, name = operand.rpartition(" ")
            yield type_, name.lstrip("%")


def _size(type_: str) -> float:
    """Bytes of an array, or of all arrays of a tuple, as its type says; padding in memory is not counted."""
    total = 0.0
    for name, sizes in _ARRAY.findall(type_):
        count = 1
        for size in sizes.replace("<=", "").split(","):
            count *= int(size) if size.strip() else 1
        total += count * _BYTES.get(name, 1.0)  # the names of 8-bit floats are many
    return total
