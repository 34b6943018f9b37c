"""W&B and Weave, fed from the run folder by processes of their own, so that training never waits for them."""
