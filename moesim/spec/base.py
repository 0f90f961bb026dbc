"""The common ground of all specifications: strict frozen pydantic models, and faults with their line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field, PlainValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from moesim.dispatch.modes import MODES
from moesim.errors import SpecError
from moesim.spec.yaml_source import Loc, Source, show_loc

Count = Annotated[int, Field(strict=True, ge=1, le=1 << 31)]
"""A whole number from 1; neither true nor "3" nor 3.0 passes for one."""

Index = Annotated[int, Field(strict=True, ge=0, le=1 << 31)]
"""A whole number from 0."""

Flag = Annotated[bool, Field(strict=True)]
"""true or false; neither 1 nor "yes"."""

Number = Annotated[float, Field(strict=True)]
"""Any finite number; whole ones pass, true and "3" do not."""

Part = Annotated[Number, Field(ge=1e-6, le=1)]
"""Of a rate or a size: less than a millionth of it is none, and times stay far from infinity."""

Many = Annotated[Number, Field(ge=0, le=1e6)]
"""Rows, bytes or times of something, from none."""

Text = Annotated[str, Field(max_length=1000)]
"""A name or a remark."""


def _mode_from(value: Any) -> str:
    if isinstance(value, str) and value in MODES:
        return value
    *names, last = map(repr, MODES)
    raise PydanticCustomError("literal_error", "{expected}", {"expected": f"{', '.join(names)} or {last}"})


DispatchMode = Annotated[str, PlainValidator(_mode_from)]
"""A name of ``moesim.dispatch.modes.MODES``."""


class Strict(pydantic.BaseModel):
    """A specification: frozen, unknown keys refused, every number finite."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        # Before the fields: a misspelt key would otherwise be reported as the right one missing.
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    name, colon, rest = str(key).partition(":")
                    if colon and value[key] is None and name in cls.model_fields:  # {sample:true}
                        raise fault(f"write '{name}: {rest}', with a blank after the colon", key)
                    known = sorted(cls.model_fields)
                    raise fault(f"unknown key; {suggest(str(key), known)}known: {', '.join(known)}", key)
        return value


Spec = TypeVar("Spec", bound=Strict)


def fault(rule: str, *at: str | int, **got: Any) -> PydanticCustomError:
    """The error to raise inside a validator for a rule that concerns the part ``at`` of the value.

    ``got=`` shows a value other than the one that was being validated.
    """
    return PydanticCustomError("rule", "{rule}", {"rule": rule, "at": at, **got})


def suggest(wrong: str, known: Iterable[str]) -> str:
    """``did you mean 'heads'? `` when one of ``known`` is close to ``wrong``, else nothing."""
    # Only the beginning of a long name: the comparison takes quadratic time.
    close = difflib.get_close_matches(wrong[:100], list(known), n=1)
    return f"did you mean '{close[0]}'? " if close else ""


def validate(cls: type[Spec], value: Any, *, source: Source | None = None, at: Loc = ()) -> Spec:
    """``value`` as a ``cls``; of several faults the one that stands first in the file is reported.

    Args:
        value: plain values as YAML gives them.
        source: where ``value`` stands, for the file and line of a fault.
        at: the place of ``value`` inside ``source.value``.

    Raises:
        SpecError: a rule of ``cls`` is broken.
    """
    source = source or Source(value, None, {})
    try:
        return cls.model_validate(value)
    except pydantic.ValidationError as error:
        faults = [_spec_error(details, source, at) for details in error.errors(include_url=False)]
    raise min(faults, key=lambda fault: fault.line or 0)


_RULES = {
    "missing": "is missing",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be finite",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of reasonable size",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_long": "must have at most {max_length} characters",
    "model_type": "must be a mapping of fields",
    "model_attributes_type": "must be a mapping of fields",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "literal_error": "must be one of {expected}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}


def _spec_error(details: ErrorDetails, source: Source, at: Loc) -> SpecError:
    """One of pydantic's error records as ours."""
    rule, inner, got = rule_of(details)
    loc = (*at, *inner)
    return SpecError(rule, file=source.file, line=source.line(loc), field=show_loc(loc) or None, **got)


def rule_of(details: ErrorDetails) -> tuple[str, Loc, dict[str, Any]]:
    """Of one of pydantic's error records the rule, the place that broke it, ``got`` where it can be shown."""
    context = details.get("ctx", {})
    # pydantic appends "[key]" where a mapping's key is at fault.
    loc: Loc = (*(part for part in details["loc"] if part != "[key]"), *context.get("at", ()))
    rule = _RULES.get(details["type"])
    if rule is not None:
        rule = rule.format_map(context)
    elif details["type"] == "value_error":  # a ValueError of a validator of ours
        rule = str(context["error"])
    else:
        rule = details["msg"].replace("Input should", "must")
    if "got" in context:
        return rule, loc, {"got": context["got"]}
    # Of a mapping the message would show the beginning, which helps nobody.
    if details["type"] != "missing" and not isinstance(details["input"], dict):
        return rule, loc, {"got": details["input"]}
    return rule, loc, {}
