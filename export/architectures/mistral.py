"""Mistral: Llama's layer with a head size of its own; a sliding window is taken only where it does not matter."""

from .architecture import Architecture, common_refusals

MISTRAL = Architecture(model_type="mistral", refusals=common_refusals)
