"""Whether a folder is a bundle that can be used: whole, safe, and for what shall run it."""

from __future__ import annotations

from pathlib import Path

from .bundle_layout import EDITS, NPU_PRECISIONS
from .configuration import ExecutionConfig
from .context_binary import require_usable_contexts
from .errors import BundleError, RequestError
from .manifest import Manifest, read_manifest, verify_files
from .onnx_external_data import require_listed_data


def usable_manifest(folder: Path, execution: ExecutionConfig, *, hashes: bool) -> Manifest:
    """Return the manifest of a bundle that `open_bundle` may open; errors as of that.

    Parameters
    ----------
    hashes
        Compare every file's hash; otherwise only names and sizes.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder: give the bundle that mobiedit-export wrote")
    if (folder / EDITS).is_symlink():
        raise BundleError(f"{folder / EDITS} is a link: put the folder itself there")
    manifest = read_manifest(folder)
    if execution.target and manifest.precision not in NPU_PRECISIONS:
        raise RequestError(
            f"the bundle is {manifest.precision}, the NPU takes {', '.join(NPU_PRECISIONS)} alone: "
            "export with --target qnn, or use --ep cpu"
        )
    verify_files(folder, manifest, hashes=hashes)
    require_listed_data(folder, manifest.files)
    require_usable_contexts(folder, manifest, execution)
    return manifest
