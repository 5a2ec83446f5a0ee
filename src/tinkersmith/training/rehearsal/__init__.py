"""What a run is to send, tried on this machine before: `tinkersmith train --rehearse`."""
