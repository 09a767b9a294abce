"""What the commands of the command line do; `gflow.__main__` only declares them."""
