"""The command line: every verb calls one function elsewhere."""
