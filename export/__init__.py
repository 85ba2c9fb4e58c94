"""The host side: a Hugging Face model becomes a bundle of ONNX graphs. Needs torch and transformers."""
