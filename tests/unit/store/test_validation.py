"""Texts of validation errors: one for each kind that the models of layerfarm can give, none of them pydantic's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from layerfarm.jobs.store.validation import fault


class Inner(BaseModel):
    number: int = 0


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=3, pattern="^[a-z]*$")]
    number: Annotated[int, Field(ge=1, le=3)] = 1
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    on: bool = True
    kind: Literal["a", "b"] = "a"
    items: Annotated[list[str], Field(min_length=1, max_length=2)] = ["x"]
    inner: Inner = Inner()
    even: int = 2

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("not an even number")
        return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "missing"),
        ({"name": "a", "other": 1}, "unknown field"),
        ({"name": 1}, "not a string"),
        ({"name": ""}, "shorter than 1 characters"),
        ({"name": "abcd"}, "longer than 3 characters"),
        ({"name": "A"}, "does not match ^[a-z]*$"),
        ({"name": "a", "number": "x"}, "not a whole number"),
        ({"name": "a", "number": 0}, "below 1"),
        ({"name": "a", "number": 4}, "above 3"),
        ({"name": "a", "share": "x"}, "not a number"),
        ({"name": "a", "share": 0}, "not above 0.0"),
        ({"name": "a", "share": 1}, "not below 1.0"),
        ({"name": "a", "on": "x"}, "neither true nor false"),
        ({"name": "a", "kind": "c"}, "not one of 'a' or 'b'"),
        ({"name": "a", "items": "x"}, "not a list"),
        ({"name": "a", "items": []}, "has fewer than 1 items"),
        ({"name": "a", "items": ["x"] * 3}, "has more than 2 items"),
        ({"name": "a", "inner": 1}, "not an object with fields"),
        ({"name": "a", "even": 1}, "not an even number"),
    ],
)
def test_each_kind_has_a_text_of_its_own(value: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Model.model_validate(value)
    assert [fault(error) for error in raised.value.errors()] == [text]
