"""When an engine may take over, and where that is kept."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toonstream.engines.proof import TOLERANCE, Proof, keep_proof, kept_proof, prove
from toonstream.errors import EngineError

RIGHT = {"output": torch.tensor([1.0, -4.0]), "other": torch.tensor([[0.5]])}


def test_what_agrees_may_take_over() -> None:
    same = prove(RIGHT, RIGHT)
    assert (same.error, same.agrees) == (0.0, True)
    near = prove(RIGHT, {"output": torch.tensor([1.1, -4.0]).half(), "other": RIGHT["other"]})
    assert near.output == "output"
    assert near.error == pytest.approx(0.1 / 4, rel=0.01)
    assert near.agrees


@given(error=st.floats(0.0, 1.0))
def test_the_worst_output_counts(error: float) -> None:
    proof = prove(RIGHT, {"output": RIGHT["output"], "other": RIGHT["other"] * (1 + error)})
    assert proof.error == pytest.approx(error, abs=1e-6)
    if abs(error - TOLERANCE) > 1e-6:
        assert proof.agrees == (error < TOLERANCE)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_may_not(number: float) -> None:
    proof = prove(RIGHT, {"output": torch.tensor([1.0, number]), "other": RIGHT["other"]})
    assert not proof.agrees
    assert str(proof) == "its output is not finite"
    with pytest.raises(EngineError, match="of what serves is not finite"):
        prove({"output": torch.tensor([number])}, {"output": torch.tensor([1.0])})


def test_another_shape_is_no_agreement_and_zeros_are() -> None:
    assert not prove(RIGHT, {**RIGHT, "other": torch.zeros(2)}).agrees
    zeros = {"residual": torch.zeros(3)}
    assert prove(zeros, {"residual": torch.full((3,), 1e-7)}).agrees
    assert not prove(zeros, {"residual": torch.full((3,), 1e-2)}).agrees


def test_proofs_are_kept_for_each_card(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    assert kept_proof(engine, "one card") is None
    proofs = {"one card": Proof(output="a", error=0.01), "another": Proof(output="b", error=None)}
    for name, proof in proofs.items():
        keep_proof(engine, name, proof)
    assert {name: kept_proof(engine, name) for name in proofs} == proofs
    assert [path.name for path in tmp_path.iterdir()] == ["proofs.json"]


@pytest.mark.parametrize("content", ["", "[1]", '{"one card": 3}', '{"one card": {"output": "a"}}'])
def test_damage_is_no_proof(tmp_path: Path, content: str) -> None:
    (tmp_path / "proofs.json").write_text(content)
    assert kept_proof(tmp_path / "engine", "one card") is None
    keep_proof(tmp_path / "engine", "one card", Proof(output="a", error=0.5))
    kept = kept_proof(tmp_path / "engine", "one card")
    assert kept is not None
    assert not kept.agrees


def test_an_engine_that_is_gone_meanwhile_is_no_error(tmp_path: Path) -> None:
    keep_proof(tmp_path / "pruned" / "engine", "one card", Proof(output="a", error=0.5))
    assert not list(tmp_path.iterdir())
