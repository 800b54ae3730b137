"""The one inner loop that all CPU kernels are made of, written in LLVM's own terms so that it stays in registers.

    out[r, :] (+)= Σ_i coefficient[r, i] · matrix[i, :]        up to 4 rows r, a block of columns, float32 sums

Matrices hold float32, or bfloat16 as its bits. Each sum runs over i in order, by itself, so a row's result does
not depend on the rows and columns computed beside it.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 4
"""Rows of a tile. Where there are fewer, the last one is repeated: its loads are paid once anyway."""

LANES = 16
"""float32 values of a vector; LLVM splits it where registers are narrower than 512 bits."""

WIDE = 4 * LANES
"""Columns of the widest tile: with four rows, as many sums as there are registers to spare."""

ELEMENTS = {torch.bfloat16: np.uint16(0), torch.float32: np.float32(0)}
"""What stands in memory for each dtype; bfloat16 as its bits."""

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


@intrinsic
def address_as(_: Any, address: Any, like: Any) -> Any:
    """A pointer to elements of the type of `like`, from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(address, like), codegen


@intrinsic
def load(_: Any, pointer: Any, index: Any) -> Any:
    """One element as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _widened(builder, builder.load(builder.gep(args[0], [args[1]])), _F32, _I32)

    return types.float32(pointer, index), codegen


@intrinsic
def store(_: Any, pointer: Any, index: Any, value: Any) -> Any:
    """One float32 as an element, rounded to nearest even."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.gep(args[0], [args[1]])
        builder.store(_narrowed(builder, args[2], place.type.pointee), place)
        return context.get_dummy_value()

    return types.void(pointer, index, value), codegen


@intrinsic
def float_of(_: Any, bits: Any) -> Any:
    """The float32 whose bits are an int64's lower half."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.trunc(args[0], _I32), _F32)

    return types.float32(types.int64), codegen


@intrinsic
def widen(_: Any, source: Any, target: Any, vectors: Any) -> Any:
    """So many vectors of elements as float32s."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with cgutils.for_range(builder, args[2]) as loop:
            place = builder.mul(loop.index, _I64(LANES))
            builder.store(_vector(builder, args[0], place), _vector_at(builder, args[1], place), align=4)
        return context.get_dummy_value()

    return types.void(source, target, vectors), codegen


@intrinsic
def add_to(_: Any, target: Any, source: Any, vectors: Any) -> Any:
    """Add so many vectors of float32s to elements, which are rounded to nearest even."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with cgutils.for_range(builder, args[2]) as loop:
            place = builder.mul(loop.index, _I64(LANES))
            total = builder.fadd(_vector(builder, args[0], place), _vector(builder, args[1], place))
            there = _vector_at(builder, args[0], place)
            builder.store(_narrowed_vector(builder, total, there.type.pointee.element), there, align=2)
        return context.get_dummy_value()

    return types.void(target, source, vectors), codegen


def _vector_at(builder: Any, pointer: Any, place: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [place]), ir.VectorType(pointer.type.pointee, LANES).as_pointer())


def _vector(builder: Any, pointer: Any, place: Any) -> Any:
    """A vector of elements as float32s."""
    loaded = builder.load(_vector_at(builder, pointer, place), align=2)
    return _widened(builder, loaded, ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES))


def _widened(builder: Any, value: Any, as_float: Any, as_int: Any) -> Any:
    """A number, or a vector of them, as float32; the types say which of the two."""
    if value.type == as_float:
        return value
    sixteen = as_int(16) if as_int is _I32 else as_int([16] * as_int.count)
    return builder.bitcast(builder.shl(builder.zext(value, as_int), sixteen), as_float)


def _narrowed(builder: Any, value: Any, element: Any) -> Any:
    if element == _F32:
        return value
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
    rounded = builder.add(bits, builder.add(odd, _I32(0x7FFF)))
    return builder.trunc(builder.lshr(rounded, _I32(16)), _I16)


def _narrowed_vector(builder: Any, values: Any, element: Any) -> Any:
    if element == _F32:
        return values
    wide, half = ir.VectorType(_I32, LANES), ir.VectorType(_I16, LANES)

    def all_of(number: int) -> Any:
        return ir.Constant(wide, [number] * LANES)

    bits = builder.bitcast(values, wide)
    odd = builder.and_(builder.lshr(bits, all_of(16)), all_of(1))
    rounded = builder.add(bits, builder.add(odd, all_of(0x7FFF)))
    return builder.trunc(builder.lshr(rounded, all_of(16)), half)


def tile(columns: int, rows: int = ROWS) -> Any:
    """The inner loop for `columns` columns, a multiple of `LANES`, and the first `rows` of four rows.

    It is called as `f(c0, c1, c2, c3, coefficient_stride, matrix, matrix_stride, n, out, out_stride, add)`:
    rows of n float32 coefficients `coefficient_stride` apart, a matrix of n rows `matrix_stride`
    elements apart, and float32 sums in rows `out_stride` apart, which start from what is there if `add`.
    """
    count, vector = columns // LANES, ir.VectorType(_F32, LANES)

    @intrinsic
    def product(
        _: Any, c0: Any, c1: Any, c2: Any, c3: Any, step: Any, matrix: Any, stride: Any, n: Any, out: Any, row: Any,
        add: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *coefficients, step, matrix, stride, n, out, row, add = args
            outs = [
                builder.bitcast(builder.gep(out, [builder.add(builder.mul(row, _I64(r)), _I64(v * LANES))]),
                                vector.as_pointer())
                for r in range(rows) for v in range(count)
            ]  # fmt: skip
            sums = [cgutils.alloca_once(builder, vector) for _ in outs]
            with builder.if_else(builder.trunc(add, ir.IntType(1))) as (then, otherwise):
                with then:
                    for place, total in zip(outs, sums, strict=True):
                        builder.store(builder.load(place, align=4), total)
                with otherwise:
                    for total in sums:
                        builder.store(ir.Constant(vector, [0.0] * LANES), total)
            with cgutils.for_range(builder, n) as loop:
                _accumulate(builder, coefficients[:rows], step, matrix, stride, loop.index, sums, count)
            for place, total in zip(outs, sums, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.void(c0, c1, c2, c3, step, matrix, stride, n, out, row, add), codegen

    return product


def _accumulate(
    builder: Any, coefficients: Any, step: Any, matrix: Any, stride: Any, i: Any, sums: Any, count: int
) -> None:
    """One i: `count` vectors of the matrix' row, times each row's coefficient."""
    vector, integers = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
    stored = ir.VectorType(matrix.type.pointee, LANES).as_pointer()
    begin = builder.mul(i, stride)
    fused = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
    )
    columns = []
    for v in range(count):
        place = builder.gep(matrix, [builder.add(begin, _I64(v * LANES))])
        columns.append(_widened(builder, builder.load(builder.bitcast(place, stored), align=2), vector, integers))
    offset = builder.mul(i, step)
    for r, row in enumerate(coefficients):
        scalar = builder.load(builder.gep(row, [offset]))
        alone = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _I32(0))
        spread = builder.shuffle_vector(
            alone, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        )
        for v in range(count):
            total = sums[r * count + v]
            builder.store(builder.call(fused, [spread, columns[v], builder.load(total)]), total)


@numba.njit
def exp(x: Any) -> Any:
    """e to the x for float32 x ≤ 0, to two units in the last place (Cephes' polynomial, which vectorises)."""
    x = max(x, numba.float32(-87.0))
    n = numba.int32(x * numba.float32(1.44269504) - numba.float32(0.5))
    r = x - numba.float32(n) * numba.float32(0.693359375) + numba.float32(n) * numba.float32(2.12194440e-4)
    p = numba.float32(1.9875691500e-4)
    p = p * r + numba.float32(1.3981999507e-3)
    p = p * r + numba.float32(8.3334519073e-3)
    p = p * r + numba.float32(4.1665795894e-2)
    p = p * r + numba.float32(1.6666665459e-1)
    p = p * r + numba.float32(5.0000001201e-1)
    return _power_of_two(n) * (p * r * r + r + numba.float32(1.0))


@intrinsic
def _power_of_two(_: Any, exponent: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.add(args[0], _I32(127)), _I32(23)), _F32)

    return types.float32(types.int32), codegen
