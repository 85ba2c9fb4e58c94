"""Who may import whom: runtime <- calibration <- export, runtime <- device; nothing but its own CLI imports export."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST_ONLY = {"torch", "transformers", "onnx", "onnxscript", "onnx_ir", "gguf", "accelerate", "huggingface_hub"}
MAY_IMPORT = {
    "runtime": {"runtime"},
    "calibration": {"calibration", "runtime"},
    "export": {"export", "calibration", "runtime"},
    "device": {"device", "runtime"},
}
FILES = [(package, path) for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    """Return every absolute module that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module)
    return modules


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_imports_flow_one_way(package: str, path: Path) -> None:
    modules = imported_modules(path)
    own = {module.split(".")[1] for module in modules if module.startswith("mobiedit.")}
    assert own <= MAY_IMPORT[package]
    if package in ("runtime", "device"):
        assert not {module.split(".")[0] for module in modules} & HOST_ONLY


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): n for _, path in FILES if (n := len(path.read_text("utf-8").splitlines())) > 300
    }
    assert not long
