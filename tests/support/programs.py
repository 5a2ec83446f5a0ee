"""Programs that start the engine in a way no option offers."""

WITHOUT_MEMORY = """
import functools, sys
from tinkersmith.engine import __main__
from tinkersmith.engine.runtime import clients
clients.Models = functools.partial(clients.Models, adapter_memory=1)
sys.exit(__main__.main())
"""
