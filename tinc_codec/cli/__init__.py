"""The `tinc` command: one module per subcommand, thin shells around the functions."""
