"""Fig. 2, left and middle: predicted changes of a linear model against leave-one-out retraining."""
