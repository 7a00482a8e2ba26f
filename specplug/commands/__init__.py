"""Subcommands of `specplug`. One a file; adapters add theirs through `specplug_register_commands`."""
