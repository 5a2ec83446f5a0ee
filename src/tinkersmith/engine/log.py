"""The engine's one logger."""

import logging

log = logging.getLogger("tinkersmith.engine")
