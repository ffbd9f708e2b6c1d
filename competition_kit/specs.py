"""Spec strings: `pgd(steps=3)`, `neftune(alpha=5)+fgm`. Read with `ast`, never evaluated."""

from __future__ import annotations

import ast
import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from competition_kit.errors import InputError, did_you_mean

__all__ = ["format_spec", "parse_spec"]


def parse_spec(text: str, known: dict[str, type]) -> Any:
    """Return the object that a spec string describes; `a+b` nests b inside a.

    Args:
        text: names and keyword arguments in Python's call syntax, joined by `+`.
        known: name -> frozen dataclass with keyword fields. Wrappers have a field `inner`.

    Raises:
        InputError: for a name, argument, type or value that does not fit; says what would.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise InputError(
            f"{text!r} does not read as a strategy",
            remedy='write for instance fgm, "pgd(steps=3, epsilon=0.5)" or "neftune(alpha=5)+fgm"',
        ) from None
    parts = _terms(tree)
    built: Any = None
    for position in reversed(range(len(parts))):
        name, arguments = _call(parts[position], text)
        if name not in known:
            raise InputError(f"unknown strategy {name!r}{did_you_mean(name, known)}")
        cls = known[name]
        if built is not None:
            if "inner" not in {field.name for field in dataclasses.fields(cls)}:
                wrappers = [
                    key
                    for key, value in known.items()
                    if "inner" in {field.name for field in dataclasses.fields(value)}
                ]
                raise InputError(
                    f"{name!r} cannot go around another strategy in {text!r}",
                    remedy=f"only {', '.join(wrappers)} can stand before a '+', the strategy that "
                    "makes the passes comes last",
                )
        inner = {} if built is None else {"inner": built}
        built = _build(name, cls, arguments, inner)
    return built


def _terms(tree: ast.expr) -> list[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        return [*_terms(tree.left), *_terms(tree.right)]
    return [tree]


def _call(tree: ast.expr, text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the keyword arguments of one term."""
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if isinstance(tree, ast.Constant) and tree.value is None:
        return "none", {}  # users write None for none
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise InputError(
            f"{ast.unparse(tree)!r} in {text!r} is no strategy",
            remedy="write name or name(key=value)",
        )
    name = tree.func.id
    if tree.args:
        raise InputError(
            f"{ast.unparse(tree)!r}: arguments need their names",
            remedy="write name(key=value)",
        )
    arguments: dict[str, Any] = {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise InputError(f"{ast.unparse(tree)!r}: '**' is not possible here")
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            if not isinstance(keyword.value, ast.Name):
                raise InputError(
                    f"{name}({keyword.arg}={ast.unparse(keyword.value)}) is no plain value",
                    remedy="give a number or a word",
                ) from None
            arguments[keyword.arg] = keyword.value.id  # scope=table needs no quotes in a shell
    return name, arguments


def _build(name: str, cls: type, arguments: dict[str, Any], inner: dict[str, Any]) -> Any:
    fields = [field.name for field in dataclasses.fields(cls) if field.name != "inner"]
    hints = get_type_hints(cls)
    checked = {}
    for key, value in arguments.items():
        if key not in fields:
            known = did_you_mean(key, fields) if fields else "; it takes none"
            raise InputError(f"{name} has no argument {key!r}{known}")
        checked[key] = _typed(name, key, value, hints[key])
    try:
        return cls(**checked, **inner)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def _typed(name: str, key: str, value: Any, hint: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float:
        if number and math.isfinite(value):
            return float(value)
        expected = "a finite number"
    elif hint is int:
        if number and float(value).is_integer():
            return int(value)
        expected = "a whole number"
    elif get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        expected = f"one of {', '.join(map(str, get_args(hint)))}"
    else:
        if isinstance(value, hint):
            return value
        expected = f"a {hint.__name__}"
    raise InputError(f"{name}: {key} is {value!r}", remedy=f"it takes {expected}")


def format_spec(built: Any, known: dict[str, type]) -> str:
    """Return the spec string of an object with every hyper-parameter, the inverse of `parse_spec`."""
    name = next(key for key, cls in known.items() if cls is type(built))
    fields = [field for field in dataclasses.fields(built) if field.name != "inner"]
    arguments = ", ".join(f"{field.name}={getattr(built, field.name)!r}" for field in fields)
    text = f"{name}({arguments})" if arguments else name
    inner = getattr(built, "inner", None)
    if inner is None or (dataclasses.is_dataclass(inner) and not dataclasses.fields(inner)):
        return text
    return f"{text}+{format_spec(inner, known)}"
