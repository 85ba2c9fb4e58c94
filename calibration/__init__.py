"""What is measured on the host and shipped as numbers: the sink token, activation ranges, key statistics."""
