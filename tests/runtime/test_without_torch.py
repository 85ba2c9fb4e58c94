"""The device has no torch: the runtime imports, asks and edits where the host's libraries cannot be imported."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib.abc, json, sys

HOST_ONLY = {"torch", "transformers", "onnx", "onnxscript", "gguf", "accelerate"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HOST_ONLY:
            raise ImportError(f"{name} is not on a device")

sys.meta_path.insert(0, Absent())
from mobiedit.runtime import EditConfig, ZerothOrderConfig, open_bundle
from mobiedit.runtime.cli import main
from mobiedit.runtime.configuration import Optimizer

bundle = open_bundle(sys.argv[1])
answer = bundle.ask("The capital of France is", max_tokens=3)
search = ZerothOrderConfig(steps=2, directions=2, check_every=1)
configs = EditConfig(force=True), EditConfig(Optimizer.ZO, zeroth_order=search, force=True)
for subject, config in zip(("France", "Spain"), configs):
    result = bundle.edit("The capital of {} is", subject, "Rome", config=config)
listed = [edit.edit_id for edit in bundle.edits()]
print(json.dumps({"id": result.edit_id, "listed": listed, "host": sorted(HOST_ONLY & set(sys.modules))}))
"""


def test_runtime_imports_and_edits_without_host_libraries(bundle_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundle_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["host"] == []
    assert len(told["listed"]) == 2
    assert told["listed"][-1] == told["id"]
