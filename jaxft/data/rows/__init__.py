"""Rows: the forms that they have, and the parsing of values of any shape into rows."""
