"""Networks that draw the hints of ControlNets; each has the names that its published checkpoint has."""
