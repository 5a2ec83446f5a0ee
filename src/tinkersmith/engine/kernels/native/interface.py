"""interface.h -> what Python needs to call the library: ctypes signatures, structures, constants.

The header is read by a parser of its own few kinds of lines. It refuses every other line, so that
nothing is called with a signature that was only guessed.
"""

import ctypes
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER = Path(__file__).with_name("interface.h")
_NUMBERS = {"i64": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float}
_ALIASES = {"using bf16 = uint16_t", "using i64 = int64_t"}
_IGNORED = {"#pragma once", "#include <cstdint>"}
_CONDITION = "#ifdef __AVX512BF16__"
_POINTER = re.compile(r"(?:const )?(\w+)\*(?: const\*)?")
_CONSTANT = re.compile(r"constexpr i64 (\w+) = (\d+)")
_STRUCTURE = re.compile(r"struct (\w+) \{(.*)\}")
_VARIABLE = re.compile(r"(.*\S) (\w+)(?:\[(\w+)\])?")  # of a structure, or a parameter
_FUNCTION = re.compile(r"(void|int) (\w+)\((.*)\)")


class InterfaceError(Exception):
    """A line of the header that the parser does not understand."""


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    parameters: dict[str, Any]  # name -> ctypes type; a pointer is an address, c_void_p
    result: Any  # ctypes type, or None
    needs_products: bool  # whether only libraries with products in bf16 have it


@dataclass(frozen=True, slots=True)
class Interface:
    functions: dict[str, Function] = field(default_factory=dict[str, Function])
    constants: dict[str, int] = field(default_factory=dict[str, int])
    structures: dict[str, type[ctypes.Structure]] = field(
        default_factory=dict[str, type[ctypes.Structure]]
    )

    def fill(self, structure: str, **values: Any) -> ctypes.Structure:
        """A structure with these values, one for each of its fields."""
        layout = self.structures[structure]
        names = {name for name, *_ in layout._fields_}
        if values.keys() != names:
            # ctypes itself would set unknown names aside and leave missing ones 0.
            raise TypeError(f"{structure} has the fields {sorted(names)}, not {sorted(values)}")
        return layout(**values)


def read_interface(header: str) -> Interface:
    """Parses the text of a header.

    Raises: InterfaceError: it has a line that is not one of the kinds in interface.h.
    """
    interface = Interface()
    in_block = needs_products = False  # inside extern "C", inside _CONDITION
    for number, statement in _statements(header):
        try:
            if statement in _IGNORED | _ALIASES:
                continue
            if statement == 'extern "C" {' and not in_block:
                in_block = True
            elif statement == "}" and in_block and not needs_products:
                in_block = False
            elif statement == _CONDITION and in_block and not needs_products:
                needs_products = True
            elif statement == "#endif" and needs_products:
                needs_products = False
            elif match := _CONSTANT.fullmatch(statement):
                interface.constants[match[1]] = int(match[2])
            elif match := _STRUCTURE.fullmatch(statement):
                interface.structures[match[1]] = _structure(match[1], match[2], interface)
            elif in_block and (match := _FUNCTION.fullmatch(statement)):
                function = _function(match[1], match[2], match[3], needs_products, interface)
                interface.functions[function.name] = function
            else:
                raise InterfaceError("this kind of line is unknown")
        except InterfaceError as error:
            raise InterfaceError(f"interface.h, line {number}: {error}: {statement}") from None
    if in_block:
        raise InterfaceError('interface.h ends inside extern "C"')
    return interface


def _statements(header: str) -> list[tuple[int, str]]:
    """Line numbers and statements, without comments and with single spaces."""
    statements: list[tuple[int, str]] = []
    pending, start = "", 0
    for number, line in enumerate(header.splitlines(), 1):
        text = " ".join(line.partition("//")[0].split())
        if not text:
            continue
        if not pending:
            start = number
        pending = f"{pending} {text}".strip()
        if pending.startswith("#") or pending in ('extern "C" {', "}"):
            statements.append((start, pending))
            pending = ""
        elif pending.endswith(";") and pending.count("{") == pending.count("}"):
            statements.append((start, pending.removesuffix(";")))
            pending = ""
    if pending:
        raise InterfaceError(f"interface.h, line {start}: this has no end: {pending}")
    return statements


def _structure(name: str, body: str, interface: Interface) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        match = _VARIABLE.fullmatch(declaration)
        if match is None:
            raise InterfaceError(f"{declaration} is no field")
        kind, count = _type(match[1], interface), match[3]
        if count is not None and count not in interface.constants:
            raise InterfaceError(f"{count} is no constant")
        fields.append((match[2], kind if count is None else kind * interface.constants[count]))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def _function(
    result: str, name: str, parameters: str, needs_products: bool, interface: Interface
) -> Function:
    types: dict[str, Any] = {}
    for parameter in filter(None, map(str.strip, parameters.split(","))):
        match = _VARIABLE.fullmatch(parameter)
        if match is None or match[3] is not None or match[2] in types:
            raise InterfaceError(f"{parameter} is no parameter")
        types[match[2]] = _type(match[1], interface)
        if issubclass(types[match[2]], ctypes.Structure):
            raise InterfaceError(f"{parameter} must be a pointer")
    if name in interface.functions:
        raise InterfaceError("this function was declared before")
    return Function(name, types, _NUMBERS.get(result), needs_products)


def _type(text: str, interface: Interface) -> Any:
    if text in _NUMBERS:
        return _NUMBERS[text]
    if text in interface.structures:
        return interface.structures[text]
    match = _POINTER.fullmatch(text)
    if match and match[1] in {*_NUMBERS, "bf16", *interface.structures}:
        return ctypes.c_void_p
    raise InterfaceError(f"{text} is an unknown type")


INTERFACE = read_interface(_HEADER.read_text(encoding="utf-8"))
