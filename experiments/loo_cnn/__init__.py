"""Fig. 2, right: predicted changes of a convolutional network against retraining."""
