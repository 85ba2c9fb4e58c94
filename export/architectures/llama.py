"""Llama 1 to 3.2 and models of its shape (SmolLM2): optional biases, llama3 rope scaling, tied or untied head."""

from .architecture import Architecture, common_refusals

LLAMA = Architecture(model_type="llama", refusals=common_refusals)
