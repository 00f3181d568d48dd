"""What other projects' tools do with a bundle, as programs of their own, to run where the checkout is out of reach."""
