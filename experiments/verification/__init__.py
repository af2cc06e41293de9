"""Do the claims hold? Claims, verdicts, tables and the report."""
