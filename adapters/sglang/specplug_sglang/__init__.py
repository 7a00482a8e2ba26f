"""SGLang's side of specplug: `--speculative-algorithm SPECPLUG`. Importing it loads neither SGLang nor torch's CUDA."""

__all__ = ["ALGORITHM"]

ALGORITHM = "SPECPLUG"
