"""The `me5` command: options only; the work is done in the rooms that the commands name."""
