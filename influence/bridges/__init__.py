"""Bridges to other libraries. Each imports its library when it is called, so none is needed by the rest."""
