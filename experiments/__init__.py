"""The replication: one file a figure, one YAML an experiment. Start at ``python -m experiments --help``."""
