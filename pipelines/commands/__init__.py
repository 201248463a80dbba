"""The commands, a module a group.  Heavy libraries are imported inside the command that needs them."""
