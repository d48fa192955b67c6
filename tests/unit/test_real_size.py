"""The scripts that measure the commands at the released size: measurements, and products in float32."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
products = runpy.run_path(str(SCRIPTS / "fast_products.py"))


def measure(monkeypatch: pytest.MonkeyPatch, file: Path, *arguments: str) -> None:
    script = str(SCRIPTS / "measure_command.py")
    monkeypatch.setattr(sys, "argv", [script, str(file), *arguments])
    runpy.run_path(script, run_name="__main__")


def test_a_command_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, marks = tmp_path / "measures.json", tmp_path / "marks"
    code = f"import time; big = b'x' * 300_000_000; time.sleep(0.2); open({str(marks)!r}, 'a').write('x')"
    for _ in range(2):
        measure(monkeypatch, file, "first", sys.executable, "-c", code)
    assert marks.read_text() == "x"
    capsys.readouterr()
    measure(monkeypatch, file)
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(file.read_text())
    assert found["first"]["seconds"] >= 0.2
    # This process may be larger, and the peak is that of all children so far.
    assert found["first"]["peak_mb"] >= 300


def test_a_command_that_fails_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        measure(monkeypatch, tmp_path / "measures.json", "first", sys.executable, "-c", "exit(3)")
    assert ended.value.code == 3
    assert not (tmp_path / "measures.json").exists()


def build_product(linear: Any, *, rows_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a product with a frozen bfloat16 weight under autocast, and the gradient of its rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 33, generator=generator).to(rows_dtype).requires_grad_()
    weight = torch.randn(7, 33, generator=generator).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = linear(rows, weight)
    (product.float() ** 2).sum().backward()
    return product, rows.grad


@pytest.mark.parametrize("rows_dtype", [torch.float32, torch.bfloat16])
def test_products_in_float32_have_the_dtypes_and_gradients_of_those_in_bfloat16(
    rows_dtype: torch.dtype,
) -> None:
    product, gradient = build_product(products["linear_in_float32"], rows_dtype=rows_dtype)
    expected, expected_gradient = build_product(torch.nn.functional.linear, rows_dtype=rows_dtype)
    assert (product.dtype, gradient.dtype) == (expected.dtype, expected_gradient.dtype)
    torch.testing.assert_close(product, expected, rtol=0.02, atol=0.05)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0.02, atol=0.5)


def test_trained_weights_are_multiplied_as_torch_does() -> None:
    rows, weight = torch.randn(5, 33), torch.randn(7, 33, requires_grad=True)
    products["linear_in_float32"](rows, weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows.sum(dim=0).expand(7, 33))
