"""The linear datamodelling score of influence and of simple attributions on a softmax regression."""
