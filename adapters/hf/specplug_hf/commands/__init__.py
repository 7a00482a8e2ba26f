"""`specplug demo` and `specplug bench`. Importing a command loads nothing heavy: torch and transformers come in `run`."""
