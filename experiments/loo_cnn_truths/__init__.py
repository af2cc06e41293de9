"""Fig. 2, right, with three ground truths: going on without a point, beginning anew, and the proximal one."""
