"""One file a command of `worldloom`, under the command's name."""
