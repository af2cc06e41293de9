"""Fig. 4: an RBF SVM against a linear model on a network's features."""
