"""SGLang's part of the command `specplug`."""
