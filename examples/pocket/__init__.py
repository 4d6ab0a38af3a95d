"""How the pocket world is made: the renderer, the training scripts and the evaluation."""
