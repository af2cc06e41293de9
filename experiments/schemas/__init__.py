"""One module of dataclasses a config group or experiment; ``experiments.schema.register_all`` imports them
all.
"""
