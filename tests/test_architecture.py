"""No circle of imports, types included; `make lint` checks which room may import which."""

from graphlib import TopologicalSorter

import grimp


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("tinkersmith", cache_dir=None)
    imports = {
        module: graph.find_modules_directly_imported_by(module)
        # The package names its public functions for type checkers, and loads them on first use.
        for module in graph.modules - {"tinkersmith"}
    }
    order = list(TopologicalSorter(imports).static_order())  # a circle raises CycleError
    assert "tinkersmith.cli.main" in order
