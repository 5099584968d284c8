"""The instructions of a disassembled kernel's inner loop, by the part of the processor that does it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

ARITHMETIC = (
    "FMNMX FSEL FSET FCHK SEL ISETP IADD LOP LEA SHF PRMT F2FP MOV VIADD IMNMX VIMNMX PLOP P2R R2P CS2R IABS I2FP BMSK "
    "SGXT POPC FLO"
)

# Beginnings of opcodes; the longest that fits decides. What begins like none of them is "other": control, barriers,
# arithmetic on uniform registers.
PIPE_OF = {
    "tensor": ("HMMA", "HGMMA", "UTCHMMA", "IMMA", "QGMMA", "UTCQMMA"),
    "mufu": ("MUFU",),
    "fp32": ("FFMA", "FMUL", "FADD", "HADD2", "HFMA2", "HMUL2", "IMAD"),
    "alu": tuple(ARITHMETIC.split()),
    "memory": ("LDG", "LDS", "LDT", "STG", "STS", "STT", "LDL", "STL", "UTMA", "UBLKCP", "ATOM", "RED", "LDC"),
    "other": ("LDGDEPBAR", "SHFL", "REDUX"),
}
PIPES = tuple(PIPE_OF)
PACKED = ("FADD2", "FMUL2", "FFMA2")  # two operations of a thread, for which the FP32 pipe takes twice as long
ASYNCHRONOUS = ("LDGSTS", "UTMALDG", "UBLKCP")

_LABEL = re.compile(r"^\s*(\.L_[\w.]+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]\w*\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\((\.L_[\w.]+)\)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction, such as `HMMA`, `.16816.F32`, `R4, R8, R2, R4`."""

    opcode: str
    modifiers: str
    operands: str

    @property
    def pipe(self) -> str:
        """Return the part of the processor that executes it."""
        fits = [
            (len(start), pipe) for pipe, starts in PIPE_OF.items() for start in starts if self.opcode.startswith(start)
        ]
        return max(fits)[1] if fits else "other"

    @property
    def target(self) -> str | None:
        """Return the label that a branch goes to."""
        found = _TARGET.search(self.operands) if self.opcode == "BRA" else None
        return found[1] if found else None

    @property
    def multiplies(self) -> int:
        """Return a warp's multiply-adds, its share where four warps work as one; 0 where no shape is shown."""
        if self.opcode == "HMMA":
            return {".16816": 16 * 8 * 16, ".1688": 16 * 8 * 8}.get(self.modifiers[: self.modifiers.find(".", 1)], 0)
        shape = re.match(r"\.(\d+)x(\d+)x(\d+)\b", self.modifiers) if self.opcode == "HGMMA" else None
        return int(shape[1]) * int(shape[2]) * int(shape[3]) // 4 if shape else 0


def parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """Return the instructions of an nvdisasm listing, in order, and the index of the first one after each label."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(Instruction(*found.groups()))
    return instructions, labels


def loops(instructions: list[Instruction], labels: dict[str, int]) -> list[list[Instruction]]:
    """Return the innermost loops with a matrix product, in order: from the target of a backward branch to it."""
    spans = []
    for at, instruction in enumerate(instructions):
        start = labels.get(instruction.target or "", at + 1)
        if any(i.pipe == "tensor" for i in instructions[start : at + 1]):
            spans.append((start, at + 1))
    inner = [(a, b) for a, b in spans if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in spans)]
    return [instructions[start:stop] for start, stop in inner]


def mix(loop: list[Instruction]) -> dict[str, int]:
    """Return the instructions of one warp in one pass through a loop, by pipe."""
    counted = Counter(i.pipe for i in loop)
    return {pipe: counted[pipe] for pipe in PIPES}
