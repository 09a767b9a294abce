"""What the commands of the command line do; `command_line` only declares them."""
