"""What really happens: retraining without points, with other labels, with changed features."""

from influence.retraining.groups import leave_groups_out
from influence.retraining.leave_one_out import Journal, Retrained, leave_one_out

__all__ = ["Journal", "Retrained", "leave_groups_out", "leave_one_out"]
