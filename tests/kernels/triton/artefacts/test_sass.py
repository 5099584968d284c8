"""Machine code by hand: which instructions stand in the main loop, and what executes them."""

from __future__ import annotations

import pytest

from tests.kernels.triton.artefacts.sass import Instruction, loops, mix, parse

LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/               @P0 IADD3 R2, R2, 0x1, RZ ;
        /*0020*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R56], desc[UR14][R24.64], P5 ;
        /*0040*/                   LDSM.16.M88.4 R4, [R60] ;
        /*0050*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
.L_x_2:
        /*0060*/                   HMMA.16816.F32 R8, R4, R7, R8 ;
        /*0070*/                   FFMA R9, R8, R3, -R10 ;
        /*0080*/              @!P1 BRA `(.L_x_2) ;
        /*0090*/                   MUFU.EX2 R9, R9 ;
        /*00a0*/              @!UP0 BRA `(.L_x_1) ;
.L_x_3:
        /*00b0*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*00c0*/                   FMNMX R9, R8, R9, !PT ;
        /*00d0*/                   SHFL.BFLY PT, R9, R9, 0x1, 0x1f ;
        /*00e0*/                   BRA `(.L_x_3) ;
        /*00f0*/                   BRA `(.L_x_4) ;
.L_x_4:
        /*0100*/                   EXIT ;
"""


def test_labels_point_at_the_instruction_after_them():
    instructions, labels = parse(LISTING)
    assert len(instructions) == 17
    assert instructions[labels[".L_x_1"]] == Instruction("LDGSTS", ".E.BYPASS.128", "[R56], desc[UR14][R24.64], P5")
    assert instructions[2].target == ".L_x_0"


def test_loops_are_the_innermost_with_a_product_and_forward_branches_are_none():
    assert [len(loop) for loop in loops(*parse(LISTING))] == [3, 4]


def test_a_mix_counts_by_the_part_that_executes():
    assert mix(loops(*parse(LISTING))[1]) == {"tensor": 1, "mufu": 0, "fp32": 0, "alu": 1, "memory": 0, "other": 2}
    assert sum(mix(parse(LISTING)[0]).values()) == 17


@pytest.mark.parametrize(
    ("opcode", "pipe"),
    [
        ("SHF", "alu"),
        ("SHFL", "other"),
        ("LDGSTS", "memory"),
        ("LDGDEPBAR", "other"),
        ("RED", "memory"),
        ("REDUX", "other"),
        ("FMNMX3", "alu"),
        ("FFMA2", "fp32"),
        ("UTCHMMA", "tensor"),
        ("UMOV", "other"),
    ],
)
def test_the_longest_beginning_decides(opcode, pipe):
    assert Instruction(opcode, "", "").pipe == pipe


def test_a_product_shows_its_multiply_adds_where_the_instruction_has_its_shape():
    assert Instruction("HMMA", ".16816.F32", "").multiplies == 2048
    assert Instruction("HMMA", ".1688.F32.TF32", "").multiplies == 1024
    assert Instruction("HGMMA", ".64x128x16.F32", "").multiplies == 64 * 128 * 16 // 4
    assert Instruction("UTCHMMA", "", "gdesc[UR12]").multiplies == 0
