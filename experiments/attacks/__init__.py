"""What training-set attacks are made of: the pixel gradient of influence, and the step that stays unseen."""
