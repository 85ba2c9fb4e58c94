"""The experiments of the MobiEdit paper, each a script that writes its figures to ``docs/experiments``."""
