"""The command cljax."""
