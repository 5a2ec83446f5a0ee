"""Programs that start the engine in a way no option offers."""

WITHOUT_MEMORY = """
import functools, sys
from tinkersmith.engine import __main__
from tinkersmith.engine.runtime import clients
clients.Models = functools.partial(clients.Models, adapter_memory=1)
sys.exit(__main__.main())
"""

# An engine that has imported what it needs and then loads for ever.
NEVER_READY = """
import sys, threading, types
clients = types.ModuleType("tinkersmith.engine.runtime.clients")
clients.Models = lambda *given, **options: threading.Event().wait()
sys.modules[clients.__name__] = clients
from tinkersmith.engine.__main__ import main
sys.exit(main())
"""
