"""Everything that can run a network, behind one interface."""
