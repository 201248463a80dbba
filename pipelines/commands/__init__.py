"""The commands, one module per group.  Heavy libraries are imported inside the commands that need them."""
