"""Parse, call, report: the only room that prints or exits."""
