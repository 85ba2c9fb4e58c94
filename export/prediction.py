"""What an export would write and need, without loading a weight: ``--dry-run``."""

from __future__ import annotations

from dataclasses import replace

from .checkpoint import find_source, read_config, shape_of, stored_half
from .configuration import ExportConfig
from .edit_layer import predict_layer
from .plan import Plan, plan_export


def predict(config: ExportConfig) -> Plan:
    """Return the sizes that an export would have, without loading a weight."""
    source = find_source(config.model, config.revision, trust_remote_code=config.trust_remote_code)
    shape = shape_of(read_config(source))
    layer = predict_layer(shape, config.layer)
    half = stored_half(source) is not None and not config.rotated  # what is rotated is in FP32 first
    if config.rotated:
        shape = replace(shape, tied_head=False)
    budget = config.key_statistics_bytes
    plan = plan_export(shape, layer, config.precision, config.block, half=half, key_statistics=budget)
    tried = f"auto: an export tries a few layers; these are the sizes for layer {layer}"
    compiled = "context binaries are not in these sizes"
    return replace(
        plan, notes=(*([tried] if config.layer is None else []), *([compiled] if config.compiled_for else []))
    )
