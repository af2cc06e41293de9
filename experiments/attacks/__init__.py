"""What training-set attacks (Fig. 5) are made of. Both experiments, ``attack_single`` and ``attack_group``,
use it.

The words, from small to large:

- *Attempt*: one test image is attacked through m training images. Their pixels change step by step until the
  prediction of the retrained model flips, or the iterations are used up (``attempt.attempt``).
- *Unit*: k attempts that run side by side as one piece of work, kept under one key of the journal.
- *Setting*: what all attempts of an experiment share: network, fitted top layer, step size, iterations.
- *Stage*: all attempts with the same number m of training images: the best ranked one, the second, the top 2,
  3, 5 and 10 together.
- *Campaign*: the stages of one experiment in order. A test image that flips takes no part in later stages.
"""
